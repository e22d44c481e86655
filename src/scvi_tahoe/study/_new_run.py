"""A run file for a new screen: labels found by a look at the cells, other choices in comments."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import yaml

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import nearest_names
from scvi_tahoe.files import atomic_write_text, verify_hdf5
from scvi_tahoe.study._run_config import TahoeRun
from scvi_tahoe.study._schema import schema_line

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
_MOST_CONTEXTS = 200
_FEWEST = 10  # combinations, to hold some of them out
_SCORED = 12  # conditions that are held out of small screens
_SHOWN = 200  # rows whose values say what scale they are on


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
    remarks
        What should be known before the run.
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
    remarks: tuple[str, ...]

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
    verify_hdf5(path)
    cells = ad.read_h5ad(path, backed="r")
    try:
        obs, shape = cells.obs, cells.shape
        values = cells.X[:_SHOWN] if cells.n_obs else np.zeros((0, 0))
        counts = _are_counts(values)
        layers = [name for name in cells.layers if name is not None]  # which newer anndata calls X
    finally:
        cells.file.close()
    perturbation_key = _perturbation_column(obs, perturbation_key)
    labels = obs[perturbation_key].astype(str).value_counts()
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
    if counts:
        named = next((name for name in layers if "log" in name.lower()), None)
        hint = (
            f"give layer {named!r}" if named else "sc.pp.normalize_total(adata, target_sum=1e4) and sc.pp.log1p(adata)"
        )
        remarks.append(f"X holds raw counts, and log1p of normalised counts is needed: {hint}")
    if found is not None and combination_separator in (None, ""):
        example = next(label for label in labels.index if found in label)
        remarks.append(f"labels such as {example!r} may be combinations, separated by {found!r}")
    if separator is None and not recurs:
        remarks.append(
            "perturbations are measured in one context each, so cells and not conditions are held out: scores say how "
            "well measured conditions are reproduced. With a table of genes or drugs, hold out perturbations"
        )
    return ScreenLook(
        path=path, shape=shape, perturbation_key=perturbation_key, control=control, context_key=context_key,
        labels={str(k): int(v) for k, v in labels.items()}, contexts={str(k): int(v) for k, v in contexts.items()},
        recurs=recurs, n_conditions=int(pairs), n_elsewhere=int(pairs) - n_labels, separator=separator,
        remarks=tuple(remarks),
    )  # fmt: skip


def _separator(labels: set[str]) -> str | None:
    """Return what separates the parts of labels, if parts of most that contain it are labels, too."""
    # an underscore is also within names, so that all parts have to be known
    for mark, known in (("+", any), ("|", any), ("&", any), (",", any), ("_", all)):
        joined = [label for label in labels if mark in label]
        if len(joined) > 1 and sum(known(part in labels for part in x.split(mark)) for x in joined) > len(joined) / 2:
            return mark
    return None


def _are_counts(values: Any) -> bool:
    stored = values.data if hasattr(values, "indptr") else np.asarray(values)
    return bool(stored.size and np.all(stored == np.round(stored)) and np.max(stored) > 1)


def _discrete(obs: pd.DataFrame) -> list[str]:
    """Return columns of labels, the ones that repeat."""
    return [str(c) for c in obs if obs[c].dtype.kind not in "fiu" and 1 < obs[c].nunique() < max(len(obs) / 2, 3)]


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


@checked()
def write_new_run(look: ScreenLook, path: str | Path) -> TahoeRun:
    """Write a run file for a screen, with what may be changed in comments.

    Raises
    ------
    FileExistsError
        If there is a file already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; give the name of a new file.")
    text = _text(look, os.path.relpath(look.path, path.parent or "."), path.name)
    run = TahoeRun.from_dict(yaml.safe_load(text))
    atomic_write_text(path, text)
    return run


def _text(look: ScreenLook, data: str, file: str) -> str:
    def quoted(value: object) -> str:
        text = yaml.safe_dump(value, width=10_000, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
        return json.dumps(value) if "\n" in text else text

    def one_line(text: str) -> str:  # of a comment, which ends with its line
        return "".join(c if c.isprintable() else " " for c in text)

    contexts = one_line(", ".join(list(look.contexts)[:5]) + (", ..." if len(look.contexts) > 5 else ""))
    file = one_line(shlex.quote(file))
    if look.context_key:
        context = f"  context_key: {quoted(look.context_key)}  # {len(look.contexts)}: {contexts}"
    else:
        context = "  # context_key: cell_line  # column of obs with cell lines, cell types or donors"
    remarks = "".join(f"# Note: {one_line(remark)}.\n" for remark in look.remarks)
    separator = '  # combination_separator: "+"  # if labels such as A+B are combinations'
    if look.separator is not None:
        separator = f"  combination_separator: {quoted(look.separator)}  # predicted from their parts"
    questions = {
        "held_out_conditions": "conditions of perturbations that are measured in other contexts",
        "held_out_perturbations": "combinations of perturbations that are measured alone",
        "fraction": "cells of every condition",
    }
    split = (
        yaml.safe_dump(look.split, default_flow_style=True, sort_keys=False, width=100).strip().replace("\n", "\n  ")
    )
    return f"""{schema_line()}
# A run of scvi-tahoe: {look.shape[0]:,} cells of {look.shape[1]:,} genes. Look at what it would do, then do it:
#   scvi-tahoe finetune {file} --dry-run
#   scvi-tahoe finetune {file}
{remarks}name: {quoted(look.path.stem)}

data:
  path: {quoted(data)}  # X: log1p of normalised counts
  # layer: log1p  # if they are in a layer
  # held_out: held_out.h5ad  # cells to be predicted and scored, if they are in a file of their own
  perturbation_key: {quoted(look.perturbation_key)}  # {len(look.labels) - 1} perturbations
  control: {quoted(look.control)}  # {look.labels[look.control]:,} cells
{context}
  # batch_key: batch  # technical batch, if controls of each batch are in the data
{separator}
  # dose_key: dose  # column of obs with doses of drugs
  # embedding_files: {{string: string.parquet}}  # tables of genes or drugs, for what is not measured
  # cell_embedding_key: X_state  # key of obsm with embeddings of cells, as scvi-tahoe embed writes them

# start: {{source: arcinstitute/ST-Tahoe}}  # published weights instead of a network from scratch

# Held out: {questions[look.split["kind"]]}.
split: {split}

train:
  max_steps: 1000

score:
  preset: vcc2025  # or quick: no differential expression, in a second

seed: 0
"""
