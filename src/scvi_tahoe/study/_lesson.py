"""Whether a study shows what it was made to show."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rounds whose scores should be below those of every later group, and at most a share of those of the next."""

    rounds: tuple[str, ...]
    at_most: float = 1.0

    def __str__(self) -> str:
        return "{" + ", ".join(self.rounds) + "}" if len(self.rounds) > 1 else self.rounds[0]


def group_of(entry: Any) -> Group:
    """Return the group that an entry of a file describes: a list of names, or ``{rounds: [...], at_most: 0.5}``.

    Raises
    ------
    ValueError
        If it is neither, or ``at_most`` is not above 0 and at most 1.
    """
    values = entry if isinstance(entry, dict) else {"rounds": entry}
    rounds, at_most = values.get("rounds"), values.get("at_most", 1.0)
    if set(values) - {"rounds", "at_most"} or not isinstance(rounds, list) or not rounds:
        raise ValueError(f"lesson holds {entry!r}; it takes lists of rounds, or {{rounds: [...], at_most: 0.5}}.")
    if isinstance(at_most, bool) or not isinstance(at_most, int | float) or not 0 < at_most <= 1:
        raise ValueError(f"lesson has at_most: {at_most!r}; it is a share above 0 and at most 1.")
    return Group(rounds=tuple(map(str, rounds)), at_most=float(at_most))


@dataclass(frozen=True)
class Lesson:
    """Expected order of scores, and what was found.

    Attributes
    ----------
    groups
        Names of rounds, the group with the lowest expected scores first.
    exceptions
        One sentence for each expectation that the scores contradict.
    unknown
        Rounds without a score.
    met
        Pairs of groups whose scores are as expected.
    """

    groups: tuple[Group, ...]
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
        expected = self._expected()
        if self.unknown:
            return f"Expected {expected}; there is no score of {', '.join(self.unknown)}, so it cannot be said."
        if self.holds:
            return f"The data show the lesson: {expected}."
        as_expected = f" As expected: {'; '.join(self.met)}." if self.met else ""
        return f"The data do not show the whole lesson, {expected}: {'; '.join(self.exceptions)}.{as_expected}"

    def _expected(self) -> str:
        text = str(self.groups[0])
        for group, above in pairwise(self.groups):
            text += f" {'<' if group.at_most == 1 else f'at most {group.at_most:.0%} of'} {above}"
        return text


def judge(entries: Sequence[Any], overall: Mapping[str, float]) -> Lesson:
    """Compare the overall scores of rounds with their expected order: entries of :func:`group_of`, worst first."""
    groups = tuple(group_of(entry) for entry in entries)
    unknown = tuple(name for group in groups for name in group.rounds if name not in overall)
    exceptions: list[str] = []
    met: list[str] = []
    pairs = [] if unknown else combinations(range(len(groups)), 2)
    for i, j in pairs:
        found = _exceptions(groups[i], groups[j], overall, at_most=groups[i].at_most if j == i + 1 else 1.0)
        exceptions += found
        met += [] if found else [f"{groups[i]} < {groups[j]}"]
    return Lesson(groups, tuple(exceptions), unknown, tuple(met))


def _exceptions(lower: Group, higher: Group, overall: Mapping[str, float], *, at_most: float) -> list[str]:
    said = []
    for a, b in product(lower.rounds, higher.rounds):
        if overall[b] <= overall[a]:
            said.append(f"{b} ({overall[b]:.1f}) is not above {a} ({overall[a]:.1f})")
        elif overall[a] > at_most * overall[b]:
            said.append(f"{a} ({overall[a]:.1f}) has {overall[a] / overall[b]:.0%} of {b} ({overall[b]:.1f})")
    return said
