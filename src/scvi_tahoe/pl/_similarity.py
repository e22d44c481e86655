"""Which observed perturbation does each predicted one look like?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.pl._style import new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["similarity"]


#: cosines below are marked
_OPPOSITE = -0.15
#: most perturbations that are named
_MAX_NAMES = 60
#: inches that a letter of a name takes
_LETTER = 0.055


def similarity(result: EvaluationResult, *, context: str | None = None) -> Figure:
    """Draw the cosine similarity of every observed with every predicted delta; at best the diagonal is dark.

    Opposite deltas carry a dash, since red and blue are alike in print.

    Parameters
    ----------
    result
        Result.
    context
        Context to show; by default the first.

    Raises
    ------
    KeyError
        If the context was not scored.
    """
    contexts = list(dict.fromkeys(c for c, _ in result.effects.conditions))
    context = contexts[0] if context is None else context
    if context not in contexts:
        msg = f"Context {context!r} was not scored; there are {contexts}."
        raise KeyError(msg)
    rows = [i for i, (c, _) in enumerate(result.effects.conditions) if c == context]
    observed, predicted = (_unit(side[rows]) for side in (result.effects.observed, result.effects.predicted))
    order = _order(observed)
    names = [result.effects.conditions[rows[i]][1] for i in order]
    size = min(2.4 + 0.16 * len(names), 9)
    named = len(names) <= _MAX_NAMES
    margin = _LETTER * max(max(map(len, names)) - 10, 0) if named else 0.0  # long names must not squeeze the map
    with style():
        figure = new_figure(size + 0.7 + margin, size + margin)
        ax = figure.subplots()
        cosine = (observed @ predicted.T)[np.ix_(order, order)]
        image = ax.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1)
        if named:
            rows_below, columns_below = np.nonzero(cosine < _OPPOSITE)
            ax.scatter(columns_below, rows_below, s=14, marker="_", color="#202020", linewidths=0.8)
            ax.set_xticks(range(len(names)), names, rotation=90)
            ax.set_yticks(range(len(names)), names)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set(xlabel="predicted", ylabel="observed")
        title = "Similarity of deltas" + (f", {context}" if len(contexts) > 1 else "")
        figure.suptitle(title, fontsize=8.5, x=0.01, ha="left")
        bar = figure.colorbar(image, ax=ax, shrink=0.6, label=f"cosine (\N{EN DASH} below {_OPPOSITE:g})")
        bar.outline.set_visible(False)
    return figure


def _unit(delta: NDArray[np.floating]) -> NDArray[np.float64]:
    length = np.linalg.norm(delta, axis=1, keepdims=True)
    return np.divide(delta, length, out=np.zeros(delta.shape), where=length > 0)


def _order(observed: NDArray[np.floating]) -> NDArray[np.intp]:
    """Order in which similar observed perturbations are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(observed) < 3:
        return np.arange(len(observed))
    return leaves_list(linkage(observed, method="average", optimal_ordering=True))
