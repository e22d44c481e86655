"""A look at a file of cells: its perturbations, controls and contexts by their names, and what has to be mended."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import nearest_names
from scvi_tahoe.files import verify_hdf5

if TYPE_CHECKING:
    import pandas as pd

_CONTROL = re.compile(
    r"(non[-_ ]?target\w*|dmso(_tf)?|vehicle|untreated|mock|unperturbed|pbs|safe[-_ ]?(harbou?r|target\w*)|aavs1|"
    # as labels and as names of guides: sgCtrl, siScramble, neg_control_2
    r"(sg|si|sh|g)?(rna)?[-_ ]?(neg\w*[-_ ]?)?(controls?|ctrl|ntc?|scrambled?|lacz|e?gfp|luc(iferase)?)[-_ ]?\d*)",
    re.IGNORECASE,
)
#: parts of names of columns, the most likely first
_PERTURBATION = ("perturbation", "target", "gene", "condition", "drug", "treatment", "compound", "guide", "pert")
_CONTEXT = (
    "cell_line",
    "cellline",
    "cell_type",
    "celltype",
    "context",
    "donor",
    "patient",
    "replicate",
    "bio_rep",
    "sample",
    "line",
)
_DOSE = re.compile(r"(^|[^a-z])(dos(e|age)|conc(entration)?s?([^a-z]|$))", re.IGNORECASE)
_NEEDED = "and log1p of normalised counts is needed"
_PANEL = 1_000  # genes, below which the median total keeps the size of counts
#: what anndata warns of
REPEATED_NAMES = "(Variable|Observation) names are not unique"
_MOST_CONTEXTS = 200
_FEWEST = 10  # combinations, to hold some of them out
_SCORED = 12  # conditions that are held out of small screens
#: what a matrix may hold instead of log1p of counts
_SCALES = {"counts": "raw counts", "negative": "negative values, as after sc.pp.scale"}
_SHOWN = 200  # rows whose values say what scale they are on
#: labels of cells without a guide, or with several
_NO_SINGLE_GUIDE = re.compile(
    r"multi(ple|plets?)?|doublets?|ambiguous|un(assigned|known|determined|mapped)|none|nan|"
    r"no[-_ ]?(guide|call|sgrna)s?",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class ScreenLook:
    """What a look at a file tells about a screen.

    Attributes
    ----------
    path
        The file.
    shape
        Cells, genes.
    perturbation_key, control, context_key
        Column of ``obs`` with perturbations, label of control cells, column with contexts (None: a single one).
    labels, contexts
        Cells of each perturbation and of each context, the most frequent first.
    recurs
        Whether perturbations are measured in several contexts.
    n_conditions, n_elsewhere
        Pairs of context and perturbation, and how many of them may be held out so that their perturbations are still
        measured in another context.
    separator
        What separates the parts of combinations, if there are some whose parts were measured alone.
    layer
        Layer with expression; None: ``X``.
    dose_key
        Column with doses, if perturbations were measured at several.
    remarks
        What should be known before the run.
    problems
        What makes the file unusable as it is, and the lines of Python that mend it.
    """

    path: Path
    shape: tuple[int, int]
    perturbation_key: str
    control: str
    context_key: str | None
    labels: dict[str, int]
    contexts: dict[str, int]
    recurs: bool
    n_conditions: int
    n_elsewhere: int
    separator: str | None
    layer: str | None
    dose_key: str | None
    remarks: tuple[str, ...]
    problems: dict[str, str]

    @property
    def moves_expression(self) -> bool:
        """Whether the lines of :meth:`remedy` put expression into ``X``."""
        return any(problem.endswith(_NEEDED) for problem in self.problems)

    @property
    def prepared(self) -> Path:
        """The file that the lines of :meth:`remedy` write."""
        return self.path.with_name(f"{self.path.stem}_prepared.h5ad")

    def remedy(self) -> str:
        """Return lines of Python that write a file without the problems."""
        read, write = f"adata = sc.read_h5ad({str(self.path)!r})", f"adata.write_h5ad({str(self.prepared)!r})"
        return "\n".join(["import scanpy as sc", "", read, *self.problems.values(), write])

    @property
    def split(self) -> dict[str, Any]:
        """What to hold out: conditions that others can tell something about, or else cells."""
        if not self.recurs:
            return self._combinations() or {"kind": "fraction", "validation": 0.1, "test": 0.1}
        # intervals need some conditions, the response model the others
        most = 0.75 * self.n_elsewhere / self.n_conditions - 0.1
        test = round(min(max(0.1, _SCORED / self.n_conditions), 0.3, most), 2)
        return {"kind": "held_out_conditions", "validation": 0.1, "test": test}

    def _combinations(self) -> dict[str, Any] | None:
        """Hold out a fifth of the combinations, and a tenth to validate with; None if there are too few."""
        known = sorted(
            label
            for label in self.labels
            if self.separator is not None
            and self.separator in label
            and all(part in self.labels for part in label.split(self.separator))
        )
        if len(known) < _FEWEST:
            return None
        return {"kind": "held_out_perturbations", "validation": known[1::10], "test": known[::5]}

    def text(self) -> str:
        """Return a summary for a terminal."""
        key = self.context_key
        several = "a single context" if key is None else f"{len(self.contexts)} contexts (obs[{key!r}])"
        return "\n".join([
            f"{self.path}: {self.shape[0]:,} cells of {self.shape[1]:,} genes, {len(self.labels) - 1:,} perturbations "
            f"(obs[{self.perturbation_key!r}]), {self.labels[self.control]:,} control cells ({self.control!r}), "
            f"{several}",
            *(f"note: {remark}" for remark in self.remarks),
        ])  # fmt: skip


@checked()
def look_at_screen(
    path: str | Path,
    *,
    perturbation_key: str | None = None,
    control: str | None = None,
    context_key: str | None = None,
    combination_separator: str | None = None,
    layer: str | None = None,
) -> ScreenLook:
    """Find out which columns of an h5ad file hold perturbations and contexts, and which cells are controls.

    Parameters
    ----------
    path
        The file; only labels and a few rows of ``X`` are read.
    perturbation_key, control, context_key
        What is known already. If None, it is found by the names of columns and by labels such as ``non-targeting``. An
        empty ``context_key`` means a single context.
    combination_separator
        What separates the parts of combinations. If None, it is found by labels whose parts are labels; if empty, there
        are none.
    layer
        Layer with expression. If None, ``X``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If nothing, or nothing unambiguous, is found; the message lists the columns.
    KeyError
        If a column or a label that is given does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    file = _read(path)
    obs = file.obs
    perturbation_key = _perturbation_column(obs, perturbation_key)
    unlabelled = obs[perturbation_key].isna() | (obs[perturbation_key].astype(str).str.strip() == "")
    labels = obs.loc[~unlabelled, perturbation_key].astype(str).value_counts()
    control = _control_label(labels, perturbation_key, control)
    possible = _context_columns(obs, perturbation_key, control)
    likely = next((column for column in possible if _rank(column, _CONTEXT) < len(_CONTEXT)), None)
    context_key = likely if context_key is None else context_key or None
    if context_key is not None:
        _verify_column(obs, context_key)
    contexts = {} if context_key is None else obs[context_key].astype(str).value_counts().to_dict()
    perturbed = obs[obs[perturbation_key].astype(str) != control]
    pairs = perturbed.groupby([perturbation_key, *([context_key] if context_key else [])], observed=True).ngroups
    n_labels = perturbed[perturbation_key].nunique()
    measured = perturbed.groupby(perturbation_key, observed=True)[context_key].nunique() if context_key else None
    recurs = measured is not None and bool((measured > 1).mean() > 0.25)
    found = _separator({str(label) for label in labels.index})
    separator = found if combination_separator is None else combination_separator or None
    remarks = []
    if context_key is None and possible:
        remarks.append(
            f"obs[{possible[0]!r}] may be contexts or batches, as each of its values has controls and perturbed cells: "
            "name it as context_key or batch_key"
        )
    scale = file.scales.get(layer, "log1p")
    logs = [name for name, of_it in file.scales.items() if name and "log" in name.lower() and of_it == "log1p"]
    if layer is None and scale != "log1p" and logs:
        remarks.append(f"X holds {_SCALES[scale]}, and layer {logs[0]!r} is read instead")
        layer = logs[0]
    several = [label for label in labels.index if label != control and _NO_SINGLE_GUIDE.fullmatch(label)]
    if several:
        names = " and ".join(map(repr, several))
        remarks.append(f"{names} is taken for a perturbation; remove its cells if it is none")
    if found is not None and combination_separator in (None, ""):
        example = next(label for label in labels.index if found in label)
        remarks.append(f"labels such as {example!r} may be combinations, separated by {found!r}")
    if separator is None and not recurs:
        remarks.append(
            "perturbations are measured in one context each, so cells and not conditions are held out: scores say how "
            "well measured conditions are reproduced. With a table of genes or drugs, hold out perturbations"
        )
    problems = _problems(file, perturbation_key, layer=layer, unlabelled=int(unlabelled.sum()), several=several)
    return ScreenLook(
        path=path, shape=file.shape, perturbation_key=perturbation_key, control=control, context_key=context_key,
        labels={str(k): int(v) for k, v in labels.items()}, contexts={str(k): int(v) for k, v in contexts.items()},
        recurs=recurs, n_conditions=int(pairs), n_elsewhere=int(pairs) - n_labels, separator=separator,
        layer=layer, dose_key=None if separator else _dose_column(perturbed, perturbation_key),
        remarks=tuple(remarks), problems=problems,
    )  # fmt: skip


class _File(NamedTuple):
    """What a file holds, as far as a look at a few rows tells."""

    shape: tuple[int, int]
    obs: pd.DataFrame
    scales: dict[str | None, str]  # of each layer, and of X
    has_raw: bool
    repeated: dict[str, bool]  # whether names of genes and of cells occur more than once


def _read(path: Path) -> _File:
    verify_hdf5(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=REPEATED_NAMES)  # the look tells them
        cells = ad.read_h5ad(path, backed="r")
    try:
        # newer anndata calls X a layer without a name
        matrices = {None: cells.X, **{name: cells.layers[name] for name in cells.layers if name is not None}}
        return _File(
            shape=cells.shape,
            obs=cells.obs,
            scales={name: _scale(matrix[:_SHOWN]) for name, matrix in matrices.items() if matrix is not None},
            has_raw=cells.raw is not None,
            repeated={"var": cells.var_names.has_duplicates, "obs": cells.obs_names.has_duplicates},
        )
    finally:
        cells.file.close()


def _problems(file: _File, key: str, *, layer: str | None, unlabelled: int, several: list[str]) -> dict[str, str]:
    """Return what makes a file unusable, and the lines of Python that mend it."""
    named = {
        f"several {what} have the same name": f"adata.{axis}_names_make_unique()"
        for what, axis in (("genes", "var"), ("cells", "obs"))
        if file.repeated[axis]
    }
    if unlabelled:
        more = f" or are labelled {' or '.join(map(repr, several))}" if several else ""
        named[f"cells have no label in obs[{key!r}] ({unlabelled:,}){more}"] = (
            f"labels = adata.obs[{key!r}]\n"
            f"adata = adata[labels.notna() & ~labels.astype(str).str.strip().isin({['', *several]})].copy()"
        )
    scale = file.scales.get(layer, "log1p")
    of_counts = [name for name, of_it in file.scales.items() if of_it == "counts"]
    if scale == "counts" or (scale == "negative" and of_counts):
        source = layer if scale == "counts" else of_counts[0]
        total = "" if file.shape[1] < _PANEL else ", target_sum=1e4"
        remedy = f"sc.pp.normalize_total(adata{total})\nsc.pp.log1p(adata)"
        if source is not None:
            remedy = f"adata.X = adata.layers[{source!r}].copy()\n{remedy}"
    else:
        remedy = "adata = adata.raw.to_adata()" if scale == "negative" and file.has_raw else ""
    matrix = "X" if layer is None else f"layer {layer!r}"
    # first, as it may bring other genes
    return ({f"{matrix} holds {_SCALES[scale]}, {_NEEDED}": remedy} if remedy else {}) | named


def _separator(labels: set[str]) -> str | None:
    """Return what separates the parts of labels, if parts of most that contain it are labels, too."""
    # an underscore is also within names, so that all parts have to be known
    for mark, known in (("+", any), ("|", any), ("&", any), (",", any), ("_", all)):
        joined = [label for label in labels if mark in label]
        if len(joined) > 1 and sum(known(part in labels for part in x.split(mark)) for x in joined) > len(joined) / 2:
            return mark
    return None


def _scale(values: Any) -> str:
    """Say what some rows hold: ``"counts"``, ``"negative"`` values, or what may be ``"log1p"`` of counts."""
    stored = values.data if hasattr(values, "indptr") else np.asarray(values)
    if not stored.size:
        return "log1p"
    if np.min(stored) < 0:
        return "negative"
    return "counts" if np.all(stored == np.round(stored)) and np.max(stored) > 1 else "log1p"


def _discrete(obs: pd.DataFrame) -> list[str]:
    """Return columns of labels, the ones that repeat."""
    return [str(c) for c in obs if obs[c].dtype.kind not in "fiu" and 1 < obs[c].nunique() < max(len(obs) / 2, 3)]


def _dose_column(perturbed: pd.DataFrame, key: str) -> str | None:
    """Return the column of numbers that is named like doses, and differs among the cells of a perturbation."""
    perturbed = perturbed[perturbed[key].notna()]
    for column in filter(lambda name: _DOSE.search(str(name)), perturbed):
        numbers = perturbed[column]
        if numbers.dtype.kind in "fiu" and numbers.notna().all() and numbers.min() > 0:
            if (numbers.groupby(perturbed[key], observed=True).nunique() > 1).any():
                return str(column)
    return None


def _rank(column: str, names: tuple[str, ...]) -> int:
    return next((i for i, name in enumerate(names) if name in column.lower()), len(names))


def _verify_column(obs: pd.DataFrame, name: str) -> None:
    known = [str(column) for column in obs]
    if name not in known:
        raise KeyError(f"there is no column {name!r} in obs{nearest_names(name, known)}; it has {known}.")


def _perturbation_column(obs: pd.DataFrame, given: str | None) -> str:
    if given is not None:
        _verify_column(obs, given)
        return given
    found = [c for c in _discrete(obs) if any(_CONTROL.fullmatch(str(label)) for label in obs[c].unique())]
    found = sorted(found, key=lambda c: (_rank(c, _PERTURBATION), -obs[c].nunique()))
    if not found or (obs[found[0]].nunique() < 3 and len(found) > 1 and obs[found[1]].nunique() >= 3):
        found = [c for c in found if obs[c].nunique() >= 3]
    if not found:
        raise ValueError(
            "no column of obs has a label that looks like one of controls (control, non-targeting, DMSO, ...); give "
            f"--perturbation-key and --control. obs has {list(obs)}."
        )
    return found[0]


def _control_label(labels: pd.Series, key: str, given: str | None) -> str:
    if given is not None:
        if given not in labels.index:
            near = nearest_names(given, list(labels.index))
            raise KeyError(
                f"there is no label {given!r} in obs[{key!r}]{near}; the largest are {labels.index[:5].tolist()}."
            )
        return given
    found = [str(label) for label in labels.index if _CONTROL.fullmatch(str(label))]
    if not found:
        raise ValueError(f"no label of obs[{key!r}] looks like one of controls; give --control. The largest are "
                         f"{labels.index[:5].tolist()}.")  # fmt: skip
    if len(found) > 1:
        raise ValueError(f"several labels of obs[{key!r}] may be controls: {found}; give --control.")
    return found[0]


def _context_columns(obs: pd.DataFrame, key: str, control: str) -> list[str]:
    """Return columns in each value of which there are controls and perturbed cells, those named like contexts first."""
    is_control, found = obs[key].astype(str) == control, []
    for column in sorted(_discrete(obs), key=lambda c: (_rank(c, _CONTEXT), obs[c].nunique())):
        if column != key and obs[column].nunique() <= _MOST_CONTEXTS:
            controls = is_control.groupby(obs[column].astype(str)).agg(["any", "all"])
            if controls["any"].all() and not controls["all"].any():
                found.append(column)
    return found
