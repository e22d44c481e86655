"""The two figures of the demo: how training went, and predicted beside observed changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvi_tahoe.datasets import FewShotTask

__all__ = ["delta_figure", "mean_deltas", "training_curve"]

_MODEL, _BASELINE, _LINE = "#0b5a8a", "#c9b79c", "#8a8a8a"
_N_COLUMNS = 4
_N_LABELLED = 3


def mean_deltas(adata: AnnData, task: FewShotTask) -> pd.DataFrame:
    """Return the change of mean expression of every held-out target, `[targets, genes]`.

    Changes are measured from the observed control cells of the task's context, for predictions as for observations.

    Parameters
    ----------
    adata
        Cells of the held-out targets, predicted or observed.
    task
        The task they belong to.
    """
    import pandas as pd

    label = task.held_out.obs[task.perturbation_key].astype(str).to_numpy()
    control = _mean(task.held_out.X[label == task.control])
    label = adata.obs[task.perturbation_key].astype(str).to_numpy()
    rows = [_mean(adata.X[label == target]) - control for target in task.targets]
    return pd.DataFrame(rows, index=list(task.targets), columns=adata.var_names)


def _mean(cells: np.ndarray) -> np.ndarray:
    return np.asarray(cells.mean(axis=0)).ravel()


def training_curve(history: pd.DataFrame) -> Figure:
    """Draw training and validation loss by step.

    Parameters
    ----------
    history
        Columns `"step"`, `"train_loss"` and `"validation_loss"`; values may be missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for column, color, label in (("train_loss", _BASELINE, "training"), ("validation_loss", _MODEL, "validation")):
        seen = history.dropna(subset=[column])
        axes.plot(seen["step"], seen[column], color=color, label=label, lw=1.8)
    best = history.loc[history["validation_loss"].idxmin()]
    axes.plot(best["step"], best["validation_loss"], "o", color=_MODEL, ms=6)
    axes.annotate(
        f"best, kept: {best['validation_loss']:.3f}", (best["step"], best["validation_loss"]), xytext=(0, 9),
        textcoords="offset points", ha="right", fontsize=9, color=_MODEL,
    )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss", title="Training of the demo")
    axes.legend(frameon=False)
    _unframe(axes)
    return figure


def delta_figure(observed: pd.DataFrame, predicted: pd.DataFrame, baseline: pd.DataFrame) -> Figure:
    """Draw predicted against observed changes, one panel a held-out target, strongest effect first.

    Parameters
    ----------
    observed, predicted, baseline
        Changes `[targets, genes]` as :func:`mean_deltas` returns them.
    """
    from matplotlib.figure import Figure

    order = observed.abs().sum(axis=1).sort_values(ascending=False).index
    n_rows = -(-len(order) // _N_COLUMNS)
    figure = Figure(figsize=(2.9 * _N_COLUMNS, 2.75 * n_rows + 0.8), layout="constrained")
    panels = figure.subplots(n_rows, _N_COLUMNS, squeeze=False).ravel()
    for axes, target in zip(panels, order, strict=False):
        _delta_panel(axes, target, observed.loc[target], predicted.loc[target], baseline.loc[target])
    for axes in panels[len(order) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Twelve targets that were held out in replicate 3: change of mean expression, one dot a gene")
    figure.supxlabel("observed change (log1p)")
    figure.supylabel("predicted change (log1p)")
    return figure


def _delta_panel(axes: Axes, target: str, observed: pd.Series, predicted: pd.Series, baseline: pd.Series) -> None:
    limit = 1.08 * max(observed.abs().max(), predicted.abs().max(), 0.1)
    axes.plot([-limit, limit], [-limit, limit], color=_LINE, lw=0.8, zorder=0)
    axes.scatter(observed, baseline, s=9, color=_BASELINE, lw=0, label="mean of the seen targets")
    axes.scatter(observed, predicted, s=11, color=_MODEL, lw=0, label="TahoeST")
    for gene in observed.abs().nlargest(_N_LABELLED).index:
        right = observed[gene] > 0
        axes.annotate(
            gene, (observed[gene], predicted[gene]), xytext=(-4 if right else 4, 3), textcoords="offset points",
            fontsize=7, ha="right" if right else "left",
        )  # fmt: skip
    r, r_baseline = (float(np.corrcoef(observed, other)[0, 1]) for other in (predicted, baseline))
    axes.set_title(f"{target}   r = {r:.2f}  (mean: {r_baseline:.2f})", fontsize=9, loc="left")
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.tick_params(labelsize=7)
    _unframe(axes)


def _unframe(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
