"""Which predicted cells and observed conditions belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cells import align_genes, cells_from_adata
from scvi_tahoe.evaluate._checks import check_if

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._checks import Check
    from scvi_tahoe.evaluate._reference import EvaluationReference


def matched(
    prediction: AnnData, reference: EvaluationReference, *, own_controls: bool
) -> tuple[CellTable, EvaluationReference, list[Check]]:
    """Read a prediction, bring its genes into the reference's order, and keep the conditions that both sides have."""
    # counts of a reference are kept in a layer as a rule, and predicted ones in X
    layer, control, observed = reference.layer, reference.control, reference.cells
    has_layer = layer is None or layer in prediction.layers
    cells = cells_from_adata(
        prediction,
        perturbation_key=reference.perturbation_key,
        context_key=reference.context_key,
        layer=layer if has_layer else None,
        role="prediction",
    )
    predicted = align_genes(cells, observed.genes, role="prediction")
    there = {c: tuple(p for p in wanted if (c, p) in predicted.rows) for c, wanted in reference.conditions.items()}
    shared = {c: perturbations for c, perturbations in there.items() if perturbations}
    if not shared:
        raise ValueError(
            "The prediction and the reference share no condition. The prediction has contexts "
            f"{_some(predicted.contexts)} and perturbations {_some(np.unique(predicted.perturbation))}; the reference "
            f"has {_some(observed.contexts)} and {_some(np.unique(observed.perturbation))}."
        )
    absent = [context for context in shared if (context, control) not in predicted.rows]
    if own_controls and absent:
        raise ValueError(
            f'control_cells="predicted" needs control cells ({control!r}) in the prediction of context {absent[0]!r}, '
            'and there are none; predict them, or use control_cells="real".'
        )
    # controls that are not used stay where they are: to drop them would copy the matrix
    kept = {(c, p) for c, perturbations in shared.items() for p in (*perturbations, control)} & set(predicted.rows)
    rows = np.sort(np.concatenate([predicted.rows[condition] for condition in kept]))
    conditions = [(c, p) for c, perturbations in reference.conditions.items() for p in perturbations]
    lost = [condition for condition in conditions if condition not in kept]
    extra = [(c, p) for c, p in predicted.rows if p != control and (c, p) not in kept]
    surplus = len(cells.genes) - len(observed.genes)
    genes_message = "the genes of the prediction were brought into the reference's order."
    if surplus:
        genes_message = f"{surplus} genes of the prediction are not in the reference and are not scored."
    lost_message = (
        f"{len(lost)} of {len(conditions)} conditions of the reference were not predicted (first: {_first(lost)}) and "
        "are not scored; PDS ranks among the rest, so compare with results on the same ones only."
    )
    extra_message = f"{len(extra)} predicted conditions are not in the reference (first: {_first(extra)})."
    layer_message = f"the prediction has no layer {layer!r}; its X was scored."
    checks = [
        check_if(predicted is not cells, "genes", surplus, "any order", genes_message, "note"),
        check_if(lost != [], "conditions without a prediction", len(lost), "0", lost_message),
        check_if(extra != [], "predictions without a truth", len(extra), "0", extra_message, "note"),
        check_if(not has_layer, "layer", float("nan"), "", layer_message, "note"),
    ]
    return predicted.take(rows), reference.restricted_to(shared), checks


def _some(names: NDArray[np.str_] | tuple[str, ...]) -> str:
    return f"[{', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''}]"


def _first(conditions: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{perturbation!r} in {context!r}" for context, perturbation in conditions[:1])
