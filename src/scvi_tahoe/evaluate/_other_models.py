"""Predictions of other models, and files of other benchmarks: CPA, GEARS, CellFlow, PerturBench, scPerturBench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData, concat

from scvi_tahoe._arguments import checked
from scvi_tahoe._messages import warn
from scvi_tahoe._names import nearest_names
from scvi_tahoe.evaluate._checks import EvaluationWarning
from scvi_tahoe.evaluate._exact_means import generator, scaled_to_mean
from scvi_tahoe.files import atomic_write, read_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

_CONTROLS = ("ctrl", "control")  # what GEARS and scPerturBench call a component that does nothing
_CATEGORY = "Expcategory"  # of scPerturBench
_PARTS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@checked()
def plain_label(label: str) -> str:
    """Return a label without the control components of GEARS: ``"KLF1+ctrl"`` is ``"KLF1"``.

    Parameters
    ----------
    label
        Label with components separated by ``+``.
    """
    parts = [part for part in str(label).split("+") if part.lower() not in _CONTROLS]
    return "+".join(parts) if parts else str(label)


@checked()
def as_prediction(
    output: AnnData | Mapping[str, Any],
    controls: AnnData,
    *,
    perturbation_key: str,
    control: str,
    context_key: str | None = None,
    context: str | None = None,
    place: str | None = None,
    genes: Sequence[str] | None = None,
    label: Callable[[str], str] = plain_label,
    seed: int = 0,
) -> AnnData:
    """Bring the output of another model into the form that :func:`evaluate` takes.

    Parameters
    ----------
    output
        Either of

        * AnnData of predicted cells with the column ``perturbation_key``; ``place`` names where the expression is:
          CPA writes ``obsm["CPA_pred"]``, CellFlow's reconstruction a layer. Of scPerturBench's ``result.h5ad`` the
          rows that are ``imputed`` are taken.
        * for each perturbation the mean profile, ``[G]``, as GEARS returns them, or cells, ``[cells, G]``, as arrays
          or DataFrames with genes as columns, as ``predicted.to_df()`` of scGen, whose predicted cells keep the label
          of the controls. Means become control cells with exactly these means.
    controls
        Observed control cells with the same columns, log1p-normalised, of one context for means.
    perturbation_key, control, context_key
        Columns of ``obs`` with perturbations and contexts, and label of control cells.
    context
        Context of the prediction, where the output does not say it.
    place
        Key of ``obsm`` or of ``layers``. If None, ``X``.
    genes
        Genes of arrays. If None, those of ``controls``.
    label
        Turns the model's label into that of the observed cells; by default ``"KLF1+ctrl"`` into ``"KLF1"``.
    seed
        Random seed of genes that no control cell expresses.

    Returns
    -------
    AnnData ``[cells, genes]``, float32, with the two columns of ``obs``. Values below zero, which expression cannot
    have and other models return, are zero there, with a warning.

    Raises
    ------
    KeyError, ValueError
        If a column or place does not exist, a profile has another number of genes, or all cells are labelled as
        controls.

    Examples
    --------
    >>> means = gears_model.predict([["KLF1"], ["KLF1", "MAP2K6"]])  # doctest: +SKIP
    >>> prediction = as_prediction(
    ...     means, controls, perturbation_key="perturbation", control="control", label=lambda x: x.replace("_", "+")
    ... )  # doctest: +SKIP
    """
    _verify_column(controls, perturbation_key, "controls")
    controls = controls[controls.obs[perturbation_key].astype(str).to_numpy() == control]
    if not controls.n_obs:
        raise ValueError(f"controls has no cell with {perturbation_key}={control!r}.")
    if context is not None and context_key is not None:
        controls = controls[controls.obs[context_key].astype(str).to_numpy() == context]
    if isinstance(output, AnnData):
        found = _of_cells(output, perturbation_key, context_key, context, place, genes, label)
        if set(found.obs[perturbation_key]) <= {control}:
            raise ValueError(
                f"all {found.n_obs} cells of the output are labelled {control!r}, as scGen leaves them; say what they "
                "are: {'STAT1': predicted.to_df()}."
            )
        return found
    if place is not None:
        raise ValueError("place is for AnnData; a mapping has its values for each perturbation.")
    names = list(map(str, controls.var_names if genes is None else genes))
    if not output or not controls.n_obs:
        raise ValueError(f"the output has {len(output)} perturbations, and there are {controls.n_obs} control cells.")
    parts, labels = [], []
    for name, values in output.items():
        own = list(map(str, values.columns)) if isinstance(values, pd.DataFrame) else names
        array = np.asarray(values, dtype=np.float32)
        if array.ndim not in (1, 2) or array.shape[-1] != len(own):
            raise ValueError(
                f"{name!r} has the shape {array.shape}; [genes] or [cells, genes] of {len(own)} is needed (components, "
                "such as those of CellFlow, become genes by cellflow.pp.reconstruct_pca)."
            )
        cells = (
            _cells_of_mean(array, own, controls, generator(seed, context or "", str(name)))
            if array.ndim == 1
            else array
        )
        part = AnnData(sp.csr_matrix(cells), var=pd.DataFrame(index=own))
        parts.append(part)
        labels += [label(str(name))] * part.n_obs
    found = concat(dict(enumerate(parts)), join="inner", index_unique="-")
    return _labelled(found, labels, perturbation_key, context_key, context)


def _of_cells(
    output: AnnData,
    perturbation_key: str,
    context_key: str | None,
    context: str | None,
    place: str | None,
    genes: Sequence[str] | None,
    label: Callable[[str], str],
) -> AnnData:
    _verify_column(output, perturbation_key, "output")
    if _CATEGORY in output.obs:
        output = output[output.obs[_CATEGORY].astype(str).to_numpy() == "imputed"]
    places = {name: output.layers[name] for name in output.layers if name is not None} | dict(output.obsm)
    if place is not None and place not in places:
        raise KeyError(f"output has no {place!r} in obsm or layers{nearest_names(place, sorted(map(str, places)))}.")
    matrix = output.X if place is None else places[place]
    names = list(map(str, output.var_names if genes is None else genes))
    if isinstance(matrix, pd.DataFrame):
        names = list(map(str, matrix.columns))
    if matrix.shape[1] != len(names):
        raise ValueError(
            f"{place or 'X'} has {matrix.shape[1]} columns, and there are {len(names)} genes; give genes=."
        )
    values = sp.csr_matrix(np.asarray(matrix) if not sp.issparse(matrix) else matrix, dtype=np.float32)
    labels = [label(name) for name in output.obs[perturbation_key].astype(str)]
    found = AnnData(values, obs=pd.DataFrame(index=output.obs_names), var=pd.DataFrame(index=names))
    if context_key is not None and context is None:
        _verify_column(output, context_key, "output")
        found.obs[context_key] = output.obs[context_key].astype(str).to_numpy()
    return _labelled(found, labels, perturbation_key, context_key, context)


def _labelled(
    found: AnnData, labels: list[str], perturbation_key: str, context_key: str | None, context: str | None
) -> AnnData:
    found.obs[perturbation_key] = pd.Categorical(labels)
    if context_key is not None and context_key not in found.obs:
        if context is None:
            raise ValueError(f"the output does not say the context ({context_key}); give context=.")
        found.obs[context_key] = context
    found.obs_names = [f"cell_{i}" for i in range(found.n_obs)]
    if found.X.nnz and (low := float(found.X.data.min())) < 0:
        share = (found.X.data < 0).sum() / (found.n_obs * found.n_vars)
        _warn_of_negative(share, low)
        found.X.data[found.X.data < 0] = 0
        found.X.eliminate_zeros()
    return found


def _warn_of_negative(share: float, low: float) -> None:
    warn(
        f"{share:.0%} of the values of the output are below zero (lowest {low:.2g}), which log1p expression cannot be; "
        "they are set to zero.",
        EvaluationWarning,
    )


def _cells_of_mean(mean: np.ndarray, genes: list[str], controls: AnnData, rng: np.random.Generator) -> Any:
    shared = pd.Index(genes)
    if not shared.isin(controls.var_names).all():
        lacking = shared[~shared.isin(controls.var_names)]
        raise ValueError(f"controls lack {len(lacking)} genes of the prediction, e.g. {lacking[0]!r}.")
    if (mean < 0).any():
        _warn_of_negative((mean < 0).mean(), float(mean.min()))
    return scaled_to_mean(controls[:, genes].X, mean, rng)


def _verify_column(adata: AnnData, key: str, what: str) -> None:
    if key not in adata.obs:
        have = [str(column) for column in adata.obs]
        raise KeyError(f"{what}.obs has no column {key!r}{nearest_names(key, have)}; it has {have}.")


@checked()
def read_split(path: str | os.PathLike[str], adata: AnnData) -> pd.Series:
    """Read a split file of PerturBench: a cell and its part in each line of a csv file, without or with a header.

    Parameters
    ----------
    path
        File such as PerturBench's ``train_test_split.csv`` or ``*_split.csv``; parts are ``train``, ``val`` and
        ``test``. Control cells have parts, too.
    adata
        The cells.

    Returns
    -------
    Part of each cell of ``adata``, in its order.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it names other parts, or lacks cells of ``adata``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a split file, cell and part in each line, is needed.")
    frame = read_csv(path, header=None, dtype=str, index_col=0, keep_default_na=False, na_values=[""])
    if frame.empty:
        raise ValueError(f"{path.name} is not a split file: a cell and its part are needed in each line.")
    table = frame.iloc[:, 0]
    if str(table.iloc[0]).lower() not in _PARTS:
        table = table.iloc[1:]  # a header
    if unknown := sorted(set(table.dropna().str.lower()) - set(_PARTS)):
        raise ValueError(f"{path.name} has the parts {unknown[:3]}; train, val and test are known.")
    if len(lacking := adata.obs_names.difference(table.index)):
        raise ValueError(
            f"{path.name} has no part for {len(lacking)} of {adata.n_obs} cells, e.g. {lacking[0]!r}; it names cells "
            f"such as {[str(name)[:40] for name in table.index[:1]]}."
        )
    return table.loc[adata.obs_names].str.lower().map(_PARTS).rename("split")


@checked()
def write_scperturbench(
    prediction: AnnData,
    observed: AnnData,
    path: str | os.PathLike[str],
    *,
    perturbation_key: str,
    control: str,
) -> Path:
    """Write the ``result.h5ad`` that scPerturBench's own scripts score.

    Parameters
    ----------
    prediction
        Predicted cells.
    observed
        Observed cells of the same perturbations, with control cells.
    path
        File to write, complete or not at all; an existing one is replaced.
    perturbation_key, control
        Column of ``obs`` with the perturbations, and label of control cells.

    Returns
    -------
    The path. The file has cells that are ``control``, ``stimulated`` and ``imputed`` by ``obs["Expcategory"]``, with
    their perturbation in ``obs["perturbation"]``, the control as ``"control"``, over the genes that both sides have.

    Raises
    ------
    KeyError, ValueError
        If a column does not exist, or the sides share no gene or no perturbation.
    """
    for side, what in ((prediction, "prediction"), (observed, "observed")):
        _verify_column(side, perturbation_key, what)
    genes = observed.var_names[observed.var_names.isin(prediction.var_names)]
    labels = {
        "imputed": prediction.obs[perturbation_key].astype(str), "observed": observed.obs[perturbation_key].astype(str)
    }  # fmt: skip
    shared = (set(labels["imputed"]) & set(labels["observed"])) - {control}
    if not len(genes) or not shared or control not in set(labels["observed"]):
        raise ValueError(
            f"prediction and observed cells share {len(genes)} genes and {len(shared)} perturbations, and the observed "
            f"ones need control cells ({control!r})."
        )
    parts = {}
    for category, side, wanted in (
        ("control", observed, {control}), ("stimulated", observed, shared), ("imputed", prediction, shared)
    ):  # fmt: skip
        names = labels["imputed" if category == "imputed" else "observed"]
        cells = side[names.isin(wanted).to_numpy(), genes]
        obs = pd.DataFrame({"perturbation": names[names.isin(wanted)].replace(control, "control").to_numpy()})
        parts[category] = AnnData(
            sp.csr_matrix(cells.X, dtype=np.float32), obs=obs.rename(str), var=cells.var[[]].copy()
        )
    table = concat(parts, label=_CATEGORY, index_unique="-")
    with atomic_write(Path(path)) as partial:
        table.write_h5ad(partial)
    return Path(path)
