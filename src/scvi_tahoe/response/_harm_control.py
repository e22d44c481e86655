"""Several data sets: how far each agrees with the others, and whether it helps to predict them or does harm."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.response._response_model import fit_responses, left_out_changes
from scvi_tahoe.response._responses import Responses, filled_changes

if TYPE_CHECKING:
    from scvi_tahoe.data import LabelParser

_MOST = 140  # conditions that sources are judged by: below the number from which weights are not learned in folds
_GENES = 300  # genes that vary most
_FEWEST = 3  # perturbations that sources share
_TOLERANCE = 1.0  # standard errors


def judge_sources(
    responses: Responses,
    parser: LabelParser,
    *,
    target: str | None = None,
    judges: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    r"""Judge each source by what it tells about the others.

    The response model predicts perturbations of the other sources without their measurement there, with this source and
    without it. Errors are compared condition by condition; a source does harm if the mean of their differences is
    larger than its standard error. Of several that do, the worst is left out first, and the rest is judged again
    without it. Of two sources of which none is the target, neither can be said to harm the other.

    Parameters
    ----------
    responses
        Changes of perturbations in each source, as its contexts.
    parser
        Reads labels.
    target
        Source whose perturbations are to be predicted: only their errors count, and it does no harm. If None, those of
        all other sources count.
    judges
        Whether errors are compared; otherwise sources are described only.
    seed
        Random seed for the perturbations that decide, where there are many.
    progress
        Whether to show a bar if it takes more than some seconds.

    Returns
    -------
    One row for each source, index = source: ``n_shared``, perturbations that another source has too; ``agreement``,
    mean correlation over these of the change, relative to the mean of the source, with that in the other sources;
    ``error_change``, by how much the mean squared error of the others grows with it (negative: it helps; .1 is 10 %;
    NaN where too little is shared); ``harms``.
    """
    labels, source_n = responses.perturbations, responses.contexts
    changes = filled_changes(responses.changes, source_n)
    genes = np.sort(np.argsort(-changes.var(axis=0), kind="stable")[:_GENES])
    names = np.unique(source_n).tolist()
    n_sources = pd.Series(labels).groupby(labels).size()
    rows = []
    for name in names:
        mine = source_n == name
        shared = labels[mine & (n_sources[labels] > 1).to_numpy()]
        changes[mine] -= changes[mine].mean(axis=0)
        rows.append({"n_shared": len(shared), "error_change": np.nan, "harms": False})
    report = pd.DataFrame(rows, index=pd.Index(names, name="source"))
    report.insert(1, "agreement", [_agreement(changes[:, genes], labels, source_n == name) for name in names])
    kept = [name for name in names if report.loc[name, "n_shared"] >= _FEWEST]
    if len(kept) < 2 or not judges:
        return report
    shared = n_sources[n_sources > 1].index.to_numpy()
    some = np.isin(labels, np.random.default_rng(seed).permutation(shared)[: _MOST // len(kept)])
    few = replace(
        responses, perturbations=labels[some], contexts=source_n[some], changes=responses.changes[some][:, genes],
        noise=responses.noise[some][:, genes], genes=responses.genes[genes], control_means={},
    )  # fmt: skip
    while len(kept) > 1:
        errors = _errors(few, kept, parser, seed, progress)
        found = {}
        for name in (name for name in kept if name != target):
            without = _errors(few, [other for other in kept if other != name], parser, seed, progress)
            both = np.isfinite(without) & ((few.contexts == target) | (target is None))
            more = errors[both] - without[both]
            report.loc[name, "error_change"] = more.mean() / max(without[both].mean(), 1e-300)
            found[name] = more.mean() / max(more.std() / np.sqrt(len(more)), 1e-300)
        worst = max(found, key=lambda name: found[name])
        if found[worst] <= _TOLERANCE or (len(kept) == 2 and target is None):
            break
        report.loc[worst, "harms"] = True
        kept.remove(worst)
    return report


def _errors(responses: Responses, sources: list[str], parser: LabelParser, seed: int, progress: bool) -> np.ndarray:
    """Mean squared error of left-out conditions of some sources, ``[n]``; NaN for others."""
    r, rows = responses, np.isin(responses.contexts, sources)
    some = replace(
        r, perturbations=r.perturbations[rows], contexts=r.contexts[rows], changes=r.changes[rows], noise=r.noise[rows]
    )
    fitted = fit_responses(some, parser, {}, seed=seed, progress=progress)
    result = np.full(len(rows), np.nan)
    result[rows] = np.nanmean(np.square(left_out_changes(fitted, "condition", {}) - some.changes), axis=1)
    return result


def _agreement(changes: np.ndarray, labels: np.ndarray, mine: np.ndarray) -> float:
    """Mean cosine of changes with the mean of those of the same perturbation elsewhere."""
    others = {label: changes[~mine & (labels == label)] for label in labels[mine].tolist()}
    found = [
        (one, elsewhere.mean(axis=0))
        for one, label in zip(changes[mine], labels[mine].tolist(), strict=True)
        if len(elsewhere := others[label])
    ]
    cosines = [a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300) for a, b in found]
    return float(np.mean(cosines)) if len(cosines) >= _FEWEST else np.nan
