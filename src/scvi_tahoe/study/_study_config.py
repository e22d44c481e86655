"""A study as a file: a ladder of rounds, each a run that may start from an earlier one, and their expected order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import nearest_names
from scvi_tahoe.study._files import anchored, read_mapping
from scvi_tahoe.study._plain_values import build, plain
from scvi_tahoe.study._run_config import PATHS, SOURCES, TahoeRun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Studies that come with the package.
SHIPPED = ("case_study", "recommended", "new_context", "full_size")
_FEWEST_CELLS, _NARROWEST = 16, 16
_SECTIONS = ("data", "model", "train", "score")


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """One round of a study.

    Attributes
    ----------
    name
        Name of the round, and of its folder.
    title
        What it is, in a line.
    role
        ``"round"``, or ``"pretraining"``: a model that later rounds start from, which is not scored.
    data, start, model, train, score, split, seed
        Parts of a :class:`TahoeRun`; what is left out is the study's. ``start.round`` names an earlier round,
        ``start.checkpoint`` its ``best`` or, to reproduce a mistake, its ``last``.
    published
        Numbers to show next to ours, e.g. ``{"DES": 0.128, "overall": 5.7}``.
    """

    name: str
    title: str = ""
    role: Literal["round", "pretraining"] = "round"
    data: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] | None = None
    seed: int | None = None
    published: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """Name of the round it starts from."""
        return self.start.get("round")

    @property
    def origin(self) -> str:
        """Where its weights come from, for people."""
        return f"from {self.source}, {self.start.get('checkpoint', 'best')}" if self.source else "from scratch"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A ladder of rounds.

    Attributes
    ----------
    name
        Name of the study, and of its folder.
    title, text
        Heading and introduction of its report.
    scale
        One number from above 0 to 1 by which the sizes of the rounds are multiplied, see :func:`scaled`.
    seed
        Seed of every round that does not give its own.
    data, model, train, score, split
        What all rounds share.
    lesson
        Groups of rounds in the order of their scores, worst first: every round of a group should score above every
        round of the groups before. ``{rounds: [a, b], at_most: 0.5}`` instead of ``[a, b]`` expects their scores to
        be at most half of those of the next group. The report says whether it is so.
    rounds
        The rounds, each after those it starts from.
    """

    name: str
    title: str = ""
    text: str = ""
    scale: float = 1.0
    seed: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] | None = None
    lesson: list[Any] = field(default_factory=list)
    rounds: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale is {self.scale}; it must be above 0 and at most 1 (the full size).")
        if not self.rounds:
            raise ValueError(f"the study {self.name!r} has no rounds.")
        rounds = [r if isinstance(r, RoundConfig) else build(RoundConfig, r, f"rounds.{i}")
                  for i, r in enumerate(self.rounds, 1)]  # fmt: skip
        object.__setattr__(self, "rounds", rounds)
        seen: list[str] = []
        for one in rounds:
            if one.name in seen:
                raise ValueError(f"the study has two rounds named {one.name!r}.")
            if one.source not in (None, *seen):
                near = nearest_names(str(one.source), seen, n=1)
                raise ValueError(f"round {one.name!r} starts from {one.source!r}, which is not an earlier round{near}.")
            seen.append(one.name)
            self.run(one, Path())
        for name in (name for entry in self.lesson for name in group_of(entry).rounds):
            if name not in seen:
                raise ValueError(f"lesson names {name!r}, which is not a round{nearest_names(name, seen, n=1)}.")

    def run(self, one: RoundConfig, folder: Path) -> TahoeRun:
        """Return the run of a round, at the study's scale, in the folder of the study.

        Raises
        ------
        ValueError
            If its parts are not those of a run.
        """
        parts: dict[str, Any] = {"name": one.name, "seed": self.seed if one.seed is None else one.seed}
        for section in _SECTIONS:
            own = getattr(one, section)
            # another source of cells replaces all of the shared section: labels of one screen mean nothing in another
            replaced = section == "data" and {"path", "dataset"} & set(own)
            parts[section] = own if replaced else _combined(getattr(self, section), own)
        source = {} if one.source is None else {"source": str(folder / one.source)}
        parts["start"] = {name: value for name, value in one.start.items() if name != "round"} | source
        parts["split"] = one.split or (self.split if "dataset" not in one.data else None)
        if one.role == "pretraining":
            parts["score"] = {"preset": None}
        try:
            return scaled(TahoeRun.from_dict(parts), self.scale)
        except ValueError as error:
            raise ValueError(f"round {one.name!r}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return plain(self)

    @classmethod
    @checked()
    def from_yaml(cls, path: str | Path) -> StudyConfig:
        """Read a study from a file, or one of :data:`SHIPPED` by its name.

        Raises
        ------
        FileNotFoundError
            If there is neither.
        ValueError
            If a key is unknown (the message names the nearest known one) or a value is out of range.
        """
        if Path(path).is_file():
            return build(cls, _anchored(read_mapping(Path(path)), Path(path).parent))
        if str(path) not in SHIPPED or Path(path).exists():
            known = ", ".join(SHIPPED)
            raise FileNotFoundError(f"there is no file {path}, and no shipped study of that name ({known}).")
        with as_file(files("scvi_tahoe.study") / "studies" / f"{path}.yaml") as shipped:
            return build(cls, read_mapping(shipped))


def _combined(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Put a round's own values into the shared section; mappings are combined key by key, except for loss terms."""
    result = dict(shared)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict) and key != "terms"
        result[key] = _combined(result[key], value) if both else value
    return result


def _anchored(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make files of data and folders of weights, which are relative to the folder of the study, absolute."""
    rounds = content.get("rounds")
    for part in (content, *(rounds if isinstance(rounds, list) else [])):
        for name, keys in (("data", PATHS), ("start", SOURCES)):
            if isinstance(part, dict) and isinstance(section := part.get(name), dict):
                section.update({key: anchored(section[key], folder) for key in keys if key in section})
    return content


def merged(given: Sequence[StudyConfig | str | Path]) -> StudyConfig:
    """Put several studies, or those in files, together; rounds of the same name must be the same."""
    studies = [one if isinstance(one, StudyConfig) else StudyConfig.from_yaml(one) for one in given]
    if not studies:
        raise ValueError("there is no study to run.")
    if len(studies) == 1:
        return studies[0]
    runs: dict[str, dict[str, Any]] = {}
    rounds: dict[str, RoundConfig] = {}
    for study, one in ((s, one) for s in studies for one in s.rounds):
        run = study.run(one, Path()).to_dict()
        if runs.setdefault(one.name, run) != run:
            raise ValueError(f"round {one.name!r} is not the same in all studies; give one of them another name.")
        # spelled out, since the shared sections differ
        spelled = {name: run[name] for name in (*_SECTIONS, "split", "seed")}
        rounds.setdefault(one.name, build(RoundConfig, plain(one) | spelled))
    return StudyConfig(
        name="-".join(study.name for study in studies), title=" and ".join(s.title or s.name for s in studies),
        text="\n".join(study.text for study in studies if study.text), seed=studies[0].seed,
        lesson=[group for study in studies for group in study.lesson], rounds=list(rounds.values()),
    )  # fmt: skip


def scaled(run: TahoeRun, scale: float) -> TahoeRun:
    """Return a run with its sizes multiplied by one number.

    Steps, steps between validations, cells of a set and widths of a gene decoder are multiplied by it. Learning rates
    are divided by it, since the rate at which Adam trains a network well goes with the inverse of its width (Yang et
    al. 2022, *Tensor Programs V*), and the width of the network that starts the study is meant to shrink with the rest.
    Sets of a step stay.
    """
    if scale == 1:
        return run

    def times(size: int | None, least: int = 1) -> int | None:
        return None if size is None else max(least, round(size * scale))

    train, network = run.train, run.model.network
    between, kept = times(train.validate_every), times(train.save_steps)
    if kept is not None and between is not None:  # checkpoints are kept at validations
        kept = max(1, round(kept / between)) * between
    if hidden := (network.get("gene_decoder") or {}).get("hidden"):
        narrower = [times(width, _NARROWEST) for width in hidden]
        network = network | {"gene_decoder": network["gene_decoder"] | {"hidden": narrower}}
    lr = None if train.lr is None else float(f"{train.lr / scale:.3g}")
    return replace(
        run,
        model=run.model.replaced(set_size=times(run.model.set_size, _FEWEST_CELLS), network=network),
        train=train.replaced(max_steps=times(train.max_steps), validate_every=between, save_steps=kept, lr=lr),
    )


@dataclass(frozen=True, kw_only=True)
class RoundGroup:
    """Rounds whose scores should be below those of every later group, and at most a share of those of the next."""

    rounds: tuple[str, ...]
    at_most: float = 1.0

    def __str__(self) -> str:
        return "{" + ", ".join(self.rounds) + "}" if len(self.rounds) > 1 else self.rounds[0]


def group_of(entry: Any) -> RoundGroup:
    """Return the group that an entry of a file describes: a list of names, or ``{rounds: [...], at_most: 0.5}``."""
    values = entry if isinstance(entry, dict) else {"rounds": entry}
    rounds, at_most = values.get("rounds"), values.get("at_most", 1.0)
    if set(values) - {"rounds", "at_most"} or not isinstance(rounds, list) or not rounds:
        raise ValueError(f"lesson holds {entry!r}; it takes lists of rounds, or {{rounds: [...], at_most: 0.5}}.")
    if isinstance(at_most, bool) or not isinstance(at_most, int | float) or not 0 < at_most <= 1:
        raise ValueError(f"lesson has at_most: {at_most!r}; it is a share above 0 and at most 1.")
    return RoundGroup(rounds=tuple(map(str, rounds)), at_most=float(at_most))


@dataclass(frozen=True)
class Lesson:
    """Expected order of scores (``groups``, the lowest first), and what was found.

    ``exceptions`` has one sentence for each expectation that the scores contradict, ``met`` the pairs of groups whose
    scores are as expected, ``unknown`` the rounds without a score.
    """

    groups: tuple[RoundGroup, ...]
    exceptions: tuple[str, ...]
    unknown: tuple[str, ...]
    met: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every expectation was met."""
        return bool(self.groups) and not self.exceptions and not self.unknown

    def __str__(self) -> str:
        if not self.groups:
            return "The study expects no order of its scores."
        expected = str(self.groups[0])
        for group, above in pairwise(self.groups):
            expected += f" {'<' if group.at_most == 1 else f'at most {group.at_most:.0%} of'} {above}"
        if self.unknown:
            return f"Expected order: {expected}. It cannot be judged: there is no score of {', '.join(self.unknown)}."
        if self.holds:
            return f"The data show the lesson: {expected}."
        as_expected = f" As expected: {'; '.join(self.met)}." if self.met else ""
        return f"Expected order not reproduced: {expected}: {'; '.join(self.exceptions)}.{as_expected}"


def judge(entries: Sequence[Any], overall: Mapping[str, float]) -> Lesson:
    """Compare the overall scores of rounds with their expected order: entries of :func:`group_of`, worst first."""
    groups = tuple(map(group_of, entries))
    unknown = tuple(name for group in groups for name in group.rounds if name not in overall)
    exceptions: list[str] = []
    met: list[str] = []
    for i, j in [] if unknown else combinations(range(len(groups)), 2):
        found: list[str] = []
        at_most = groups[i].at_most if j == i + 1 else 1.0
        for a, b in product(groups[i].rounds, groups[j].rounds):
            if overall[b] <= overall[a]:
                found.append(f"{b} ({overall[b]:.1f}) is not above {a} ({overall[a]:.1f})")
            elif overall[a] > at_most * overall[b]:
                found.append(f"{a} ({overall[a]:.1f}) has {overall[a] / overall[b]:.0%} of {b} ({overall[b]:.1f})")
        exceptions += found
        met += [] if found else [f"{groups[i]} < {groups[j]}"]
    return Lesson(groups, tuple(exceptions), unknown, tuple(met))
