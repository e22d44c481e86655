"""Several screens as one: common labels, shared genes, and a weight for each that says how far it is trusted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe._labels import verify_labels, verify_unique
from scvi_tahoe._matrices import trusted_matrix
from scvi_tahoe._names import nearest_names
from scvi_tahoe.response._effects_table import _changes_of_expression
from scvi_tahoe.response._harm_control import judge_sources
from scvi_tahoe.response._response_table import read_responses

logger = logging.getLogger(__name__)

_FEWEST_GENES = 50
PERTURBATION, CONTEXT, BATCH, SOURCE, WEIGHT = "perturbation", "context", "batch", "source", "source_weight"
_REPORT = "scvi_tahoe_sources"


@checked()
def concat_screens(
    screens: Mapping[str, ad.AnnData],
    *,
    perturbation_key: str | Mapping[str, str],
    control: str | Mapping[str, str],
    context_key: str | Mapping[str, str | None] | None = None,
    batch_key: str | Mapping[str, str | None] | None = None,
    dose_key: str | None = None,
    combination_separator: str | None = None,
    weights: Mapping[str, float] | None = None,
    target: str | None = None,
    harm_control: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> ad.AnnData:
    """Combine several screens, and find out which of them help to predict the others.

    Genes are those that all screens have, matched by name. Contexts and technical batches are named by their screen
    (``"replogle: K562"``), so that control cells are never shared between screens. A screen that does harm gets the
    weight 0, and a warning says so: the response model predicts conditions of the other screens without themselves,
    with it and without it, and what makes them worse is not learned from. Cells that are used for testing must not be
    among the screens.

    Parameters
    ----------
    screens
        Screens by name, log1p of normalised counts in ``X``.
    perturbation_key, control
        Column of ``obs`` with perturbations, and label of control cells; for each screen if they differ. The same
        perturbation must have the same label in all (:func:`scvi_tahoe.tables.read_aliases` helps).
    context_key, batch_key
        Columns of ``obs`` with contexts and with technical batches; for each screen if they differ. A screen without
        one has a single context or batch.
    dose_key, combination_separator
        As for :meth:`~scvi_tahoe.TahoeST.setup_anndata`, the same in all screens.
    weights
        Weight of screens, 1 if not given. Training draws conditions in proportion to it; below 1, the response model
        treats the rest of the variance among a screen's perturbations as noise.
    target
        Name of the screen that predictions are wanted for. If None, each is judged by what it tells about all others;
        of two screens neither is then dropped.
    harm_control
        Whether screens that do harm get the weight 0. It takes one fit of the response model for each screen.
    seed
        Random seed for the perturbations that screens are judged by.
    progress
        Whether to show a bar if it takes more than some seconds.

    Returns
    -------
    AnnData with the cells of all screens. ``obs`` has the columns that all screens have, and ``"perturbation"``,
    ``"context"``, ``"batch"``, ``"source"`` and ``"source_weight"``, which go to
    :meth:`~scvi_tahoe.TahoeST.setup_anndata`.
    ``uns["scvi_tahoe_sources"]`` has one row for each screen: ``n_cells``, ``n_shared`` (perturbations that
    another screen has, too), ``agreement`` (mean correlation of their changes with those in the other screens),
    ``error_change`` (of left-out conditions of the others with it; 0.1 means 10 % worse) and ``weight``.

    Raises
    ------
    KeyError
        If a column does not exist, or ``target`` or ``weights`` name no screen.
    ValueError
        If there are fewer than two screens, they share fewer than 50 genes, a screen has no control cells, or a weight
        is negative.

    Examples
    --------
    >>> from scvi_tahoe import TahoeST, concat_screens
    >>> cells = concat_screens(
    ...     {"mine": mine, "published": published},
    ...     perturbation_key="gene",
    ...     control="non-targeting",
    ...     context_key="cell_line",
    ...     target="mine",
    ... )  # doctest: +SKIP
    >>> TahoeST.setup_anndata(
    ...     cells,
    ...     "perturbation",
    ...     "non-targeting",
    ...     context_key="context",
    ...     source_key="source",
    ...     weight_key="source_weight",
    ... )  # doctest: +SKIP
    """
    names = [str(name) for name in screens]
    weights = {str(name): float(weight) for name, weight in (weights or {}).items()}
    _verify(screens, names, weights, target)
    labels: dict[str, Any] = {"perturbation_key": perturbation_key, "control": control}
    labels |= {"context_key": context_key, "batch_key": batch_key}
    common = _of(control, names[0])
    genes = _shared_genes(screens)
    parts = {
        name: _labelled(name, screen, {key: _of(value, name) for key, value in labels.items()}, str(common), genes)
        for name, screen in screens.items()
    }
    together = ad.concat(parts, join="inner", merge="same", uns_merge="first", index_unique="-")
    found = _judged(
        together, str(common), dose_key, combination_separator, target=target, seed=seed,
        progress=progress, judges=harm_control,
    )  # fmt: skip
    found = found.loc[names]
    found.insert(0, "n_cells", [screens[name].n_obs for name in names])
    found["weight"] = [0.0 if found.loc[name, "harms"] else weights.get(name, 1.0) for name in names]
    if not (found["weight"] > 0).any():
        raise ValueError("every screen has the weight 0; nothing would be left to learn from.")
    together.obs[WEIGHT] = together.obs[SOURCE].astype(str).map(found["weight"]).astype(float)
    _announce(found, harm_control=harm_control, target=target, n_genes=len(genes))
    together.uns[_REPORT] = found.drop(columns="harms")
    return together


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else value


def _verify(
    screens: Mapping[str, ad.AnnData], names: list[str], weights: Mapping[str, float], target: str | None
) -> None:
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"screens has {names}; give two or more by different names.")
    for name, screen in screens.items():
        if not isinstance(screen, ad.AnnData):
            raise TypeError(f"screens[{name!r}] is a {type(screen).__name__}; AnnData with cells is expected.")
    for what, asked in (("weights", list(weights)), ("target", [] if target is None else [target])):
        if unknown := [name for name in asked if name not in names]:
            raise KeyError(f"{what} names {unknown[0]!r}, which is not a screen{nearest_names(unknown[0], names)}.")
    if wrong := {name: weight for name, weight in weights.items() if not (np.isfinite(weight) and weight >= 0)}:
        raise ValueError(f"weights has {wrong}; weights are finite and 0 or more.")
    if target is not None and weights.get(target, 1.0) == 0:
        raise ValueError(f"the target {target!r} has the weight 0; nothing would be learned from it.")


def _shared_genes(screens: Mapping[str, ad.AnnData]) -> pd.Index:
    first, *others = screens.values()
    for name, screen in screens.items():
        verify_unique(screen.var_names, "gene", f" in {name!r}; call var_names_make_unique()")
    genes = first.var_names
    for other in others:
        genes = genes[genes.isin(other.var_names)]
    if len(genes) < _FEWEST_GENES:
        have = ", ".join(f"{name}: {s.n_vars:,} such as {list(s.var_names[:1])}" for name, s in screens.items())
        raise ValueError(
            f"the screens share {len(genes)} genes ({have}); {_FEWEST_GENES} are needed. Names must be equal to the "
            "letter; scvi_tahoe.tables.read_aliases translates."
        )
    return genes


def _labelled(name: str, screen: ad.AnnData, labels: Mapping[str, Any], common: str, genes: pd.Index) -> ad.AnnData:
    """Return the cells of a screen with the common columns and genes."""
    for argument in ("perturbation_key", "context_key", "batch_key"):
        key = labels[argument]
        if key is None and argument == "perturbation_key":
            raise KeyError(f"{argument} names no column for {name!r}.")
        if key is not None and key not in screen.obs:
            have = [str(column) for column in screen.obs]
            raise KeyError(f"{name!r} has no column {key!r} ({argument}){nearest_names(key, have)}; it has {have}.")
        if key is not None:
            verify_labels(screen.obs[key], f"obs[{key!r}] ({argument}) of {name!r}")
    perturbation = screen.obs[labels["perturbation_key"]].astype(str).to_numpy()
    own = str(labels["control"])
    if own not in perturbation:
        raise ValueError(f"{name!r} has no cell with control={own!r}{nearest_names(own, sorted(set(perturbation)))}.")
    if (perturbation == own).all():
        raise ValueError(f"{name!r} has control cells only; a screen has perturbed cells, too.")
    screen = _trusted(name, screen)
    cells = screen[:, genes].to_memory() if screen.isbacked else screen[:, genes].copy()
    columns = {PERTURBATION: np.where(perturbation == own, common, perturbation), SOURCE: np.full(screen.n_obs, name)}
    for column, argument in ((CONTEXT, "context_key"), (BATCH, "batch_key")):
        key = labels[argument]
        values = [name] * screen.n_obs if key is None else [f"{name}: {value}" for value in screen.obs[key]]
        columns[column] = np.array(values)
    cells.obs = cells.obs.assign(**{column: pd.Categorical(values) for column, values in columns.items()})
    return cells


def _trusted(name: str, screen: ad.AnnData) -> ad.AnnData:
    """Return a screen whose matrix has been verified, as one in memory where it was in an unusual format."""
    if screen.X is None:
        raise ValueError(f"{name!r} has no X; put log1p of normalised counts there.")
    if screen.isbacked and screen.is_view:
        screen = screen.to_memory()
    matrix = trusted_matrix(screen.X, f"{name!r}.X", screen.shape)
    if screen.isbacked:
        return screen
    parts: dict[str, Any] = {part: dict(getattr(screen, part)) for part in ("layers", "obsm", "varm", "uns")}
    parts["layers"].pop(None, None)  # newer anndata calls X a layer without a name
    return ad.AnnData(matrix, obs=screen.obs, var=screen.var, **parts)


def _judged(
    cells: ad.AnnData,
    control: str,
    dose_key: str | None,
    combination_separator: str | None,
    *,
    target: str | None,
    seed: int,
    progress: bool,
    judges: bool,
) -> pd.DataFrame:
    changes, variances = _changes_of_expression(cells, PERTURBATION, CONTEXT, control, dose_key)
    source_of = dict(zip(cells.obs[CONTEXT].astype(str), cells.obs[SOURCE].astype(str), strict=True))
    changes.obs[SOURCE] = changes.obs[CONTEXT].astype(str).map(source_of)
    # a mean over the contexts of each, so that what a source says of a perturbation comes from no other of its contexts
    table = read_responses(
        changes, perturbation_key=PERTURBATION, context_key=SOURCE, control=control, dose_key=dose_key,
        combination_separator=combination_separator, variance_layer=variances,
    )  # fmt: skip
    return judge_sources(table.responses, table.keys.parser, target=target, seed=seed, progress=progress, judges=judges)


def _announce(found: pd.DataFrame, *, harm_control: bool, target: str | None, n_genes: int) -> None:
    logger.info("%d screens with %s cells share %s genes.", len(found), f"{found['n_cells'].sum():,}", f"{n_genes:,}")
    for name, row in found.iterrows():
        if row["harms"]:
            logger.warning(
                "%s gets the weight 0: with it, conditions of %s are predicted %.0f %% worse (mean squared error of %d "
                "shared perturbations; correlation with the others %.2f).",
                name, "the others" if target is None else target, 100 * row["error_change"], row["n_shared"],
                row["agreement"],
            )  # fmt: skip
        elif harm_control and np.isnan(row["error_change"]) and name != target:
            logger.warning(
                "%s shares %d perturbations with the others: nothing says whether it helps, and it keeps its weight.",
                name, row["n_shared"],
            )  # fmt: skip
    if harm_control and len(found) == 2 and target is None and (found["error_change"] > 0).all():
        logger.warning("each of the two makes the other worse; name the one that you want to predict: target=.")
