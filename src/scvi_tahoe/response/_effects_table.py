"""Perturbations of another screen as rows of an embedding table: what they do there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_tahoe._arguments import checked
from scvi_tahoe._devices import device_of
from scvi_tahoe._labels import verify_unique
from scvi_tahoe._matrices import trusted_matrix
from scvi_tahoe._threads import solving_threads
from scvi_tahoe.response._members import Question
from scvi_tahoe.response._response_model import fit_responses
from scvi_tahoe.response._response_table import read_responses, verify_column
from scvi_tahoe.response._responses import filled_changes
from scvi_tahoe.response._uncertainty import Measured, predict_conditions

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_VARIANCES = "scvi_tahoe_variance"
_FEWEST = 3  # perturbations
#: perturbations for each component: columns of tables count alike, so that components of noise would drown the others
_FOR_A_COMPONENT = 4


@checked(n_components=(1, None), seed=(0, None))
def effects_table(
    adata: AnnData,
    *,
    perturbation_key: str,
    context_key: str | None = None,
    control: str | None = None,
    n_components: int = 64,
    dose_key: str | None = None,
    combination_separator: str | None = None,
    variance_layer: str | None = None,
    licence: str | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Make an embedding table of what perturbations do in another screen.

    Parameters
    ----------
    adata
        Another screen, or its table of responses. If the rows of ``control`` are not 0, they and the others are
        expression (cells, or means of cells), and the mean of the controls of each context is subtracted; otherwise
        ``X`` holds changes.
    perturbation_key, context_key, control
        Columns of ``obs`` and label of the controls, as for :meth:`ResponseModel.fit`.
    n_components
        Maximum number of columns; there is at most one for every four perturbations.
    dose_key, combination_separator, variance_layer
        As for :meth:`ResponseModel.fit`. Of cells, variances are measured.
    licence
        Licence of the screen, kept with the table.
    seed, device, progress
        As for :meth:`ResponseModel.fit`.

    Returns
    -------
    DataFrame ``[perturbations, components]``: principal components of the effects, largest first. If sampling variances
    are known, effects are posterior means, in which noise is shrunk; they are relative to the mean of each context, and
    averaged over contexts. ``attrs`` says where they come from.

    Raises
    ------
    ValueError
        If there are fewer than three perturbations, a context has no controls, or as for :meth:`ResponseModel.fit`.

    Examples
    --------
    >>> table = effects_table(other_screen, perturbation_key="gene", control="non-targeting")  # doctest: +SKIP
    >>> response = ResponseModel.fit(screen, perturbation_key="gene", tables={"other": table})  # doctest: +SKIP
    """
    verify_column(adata, "perturbation_key", perturbation_key)
    if context_key in adata.obs:
        verify_column(adata, "context_key", context_key)
    verify_unique(adata.var_names, "gene", "; call adata.var_names_make_unique()")
    if control is not None:
        adata, layer = _changes_of_expression(adata, perturbation_key, context_key, str(control), dose_key)
        variance_layer = layer or variance_layer
    where = device_of(device)
    table = read_responses(
        adata, perturbation_key=perturbation_key, context_key=context_key, control=control, dose_key=dose_key,
        combination_separator=combination_separator, variance_layer=variance_layer,
    )  # fmt: skip
    for note in table.notes:
        logger.info("%s.", note)
    responses = table.responses
    labels, contexts = responses.perturbations, responses.contexts
    names, code = np.unique(labels, return_inverse=True)
    if len(names) < _FEWEST:
        raise ValueError(f"adata has {len(names)} perturbations; {_FEWEST} or more are needed to compare them.")
    changes = filled_changes(responses.changes, contexts)
    if known := np.flatnonzero(table.has_noise).tolist():
        with solving_threads(*changes.shape):
            fitted = fit_responses(responses, table.keys.parser, {}, device=where, seed=seed, progress=progress)
        questions = [Question(str(labels[i]), str(contexts[i]), hides_condition=False) for i in known]
        measured = Measured.of(fitted, table.has_noise)
        changes[known] = predict_conditions(fitted, questions, responses.control_means, measured).changes
    centred = changes - _means_of(changes, contexts)
    effects = np.stack([centred[code == k].mean(axis=0) for k in range(len(names))])
    left, size, _ = np.linalg.svd(effects - effects.mean(axis=0), full_matrices=False)
    n = min(n_components, max(2, len(names) // _FOR_A_COMPONENT), int((size > 1e-6 * max(size[0], 1e-300)).sum()))
    if not n:
        raise ValueError("all perturbations have the same effect; there is nothing to tell them apart by.")
    columns = [f"effect_{k + 1}" for k in range(n)]
    result = pd.DataFrame(left[:, :n] * size[:n], index=pd.Index(names, name=perturbation_key), columns=columns)
    result.attrs = {
        "kind": "effects in another screen", "source": f"{len(names)} perturbations x {changes.shape[1]:,} genes",
        "licence": licence or "not stated; that of the screen applies",
        "detail": f"contexts: {', '.join(np.unique(contexts).tolist()[:10])}",
    }  # fmt: skip
    return result


def _means_of(changes: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Mean change of each row's context, over perturbations."""
    result = np.empty_like(changes)
    for context in np.unique(contexts).tolist():
        here = contexts == context
        result[here] = changes[here].mean(axis=0)
    return result


def _changes_of_expression(
    adata: AnnData, perturbation_key: str, context_key: str | None, control: str, dose_key: str | None
) -> tuple[AnnData, str | None]:
    """Subtract the mean of controls that are not 0, and measure variances if there are several rows of a condition."""
    labels = adata.obs[perturbation_key].astype(str).to_numpy()
    is_control = labels == control
    matrix: Any = adata.X
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    if (
        matrix is None
        or not is_control.any()
        or not _any((matrix := trusted_matrix(matrix, "adata.X", adata.shape))[is_control])
    ):
        return adata, None
    keys = [key for key in (perturbation_key, context_key, dose_key) if key is not None]
    missing = [key for key in keys if key not in adata.obs]
    if missing:
        return adata, None  # what is missing is said by the reader
    obs = adata.obs[keys].copy()
    contexts = np.zeros(len(obs), dtype=str) if context_key is None else obs[context_key].astype(str).to_numpy()
    obs = obs.assign(**{perturbation_key: labels})
    if dose_key is not None:
        obs.loc[is_control, dose_key] = np.nan
    code, first = pd.factorize(pd.MultiIndex.from_frame(obs.astype(str)))
    mean, variance, n = _moments(matrix, code, len(first))
    row = np.unique(code, return_index=True)[1]
    of_control, where = is_control[row], contexts[row]
    position = {context: i for i, context in enumerate(where.tolist()) if of_control[i]}
    if lacking := sorted(set(where.tolist()) - set(position)):
        raise ValueError(f"obs[{context_key!r}] has contexts without controls ({control!r}): {lacking[:5]}.")
    mine = np.array([position[context] for context in where.tolist()])
    changes = AnnData(mean - mean[mine], obs=obs.iloc[row].reset_index(drop=True).rename(str), var=adata.var[[]].copy())
    if (n == 1).all():
        return changes, None
    pooled = (variance * n[:, None]).sum(axis=0) / n.sum()
    # single cells have no variance of their own
    noise = np.where(n[:, None] > 2, variance * (n / np.maximum(n - 1, 1))[:, None], pooled) / n[:, None]
    changes.layers[_VARIANCES] = noise + noise[mine]
    logger.info("expression of %d rows is averaged to changes of %d conditions.", len(labels), (~of_control).sum())
    return changes, _VARIANCES


def _any(matrix: Any) -> bool:
    return bool((abs(matrix) > 0).sum() > 0)


def _moments(matrix: Any, code: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of groups of rows, and how many rows they have."""
    n = np.bincount(code, minlength=n_groups)
    member = sparse.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))), shape=(n_groups, len(code)))

    def mean(values: Any) -> np.ndarray:
        total = member @ values
        return np.asarray(total.todense() if sparse.issparse(total) else total, dtype=np.float64) / n[:, None]

    squared = matrix.multiply(matrix) if sparse.issparse(matrix) else np.square(matrix, dtype=np.float64)
    found = mean(matrix)
    return found, np.maximum(mean(squared) - np.square(found), 0), n
