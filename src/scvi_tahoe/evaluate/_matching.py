"""The two sides of an evaluation brought together: same genes, same conditions, values worth scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cells import align_genes, cells_from_adata
from scvi_tahoe.evaluate._checks import check_if, most_severe
from scvi_tahoe.evaluate._value_checks import (
    cell_totals,
    check_counts,
    check_depth,
    check_integers,
    check_logarithm,
    check_range,
    check_scale,
    check_totals_spread,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._checks import Check
    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._value_checks import CellProfile


def matched(
    prediction: AnnData, reference: EvaluationReference, *, own_controls: bool
) -> tuple[CellTable, EvaluationReference, list[Check]]:
    """Read a prediction, bring its genes into the reference's order, and keep the conditions that both sides have.

    With ``own_controls`` the prediction is scored on its own control cells, which must then be there.
    """
    # counts of a reference are kept in a layer as a rule, and predicted ones in X
    layer, control = reference.layer, reference.control
    has_layer = layer is None or layer in prediction.layers
    cells = cells_from_adata(
        prediction,
        perturbation_key=reference.perturbation_key,
        context_key=reference.context_key,
        layer=layer if has_layer else None,
        role="prediction",
    )
    predicted = align_genes(cells, reference.cells.genes, role="prediction")
    shared = _shared_conditions(predicted, reference.cells, control=control)
    no_layer = f"the prediction has no layer {layer!r}; its X was scored."
    checks = [
        _genes(cells, reference),
        _missing(shared, reference),
        _surplus(shared, predicted, control),
        check_if(not has_layer, "layer", float("nan"), "", no_layer, "note"),
    ]
    # controls that are not used stay where they are: to drop them would copy the matrix
    wanted = [(context, p) for context, perturbations in shared.items() for p in perturbations]
    controls = [(context, control) for context in shared]
    absent = [context for context, _ in controls if (context, control) not in predicted.rows]
    if own_controls and absent:
        raise ValueError(
            f'control_cells="predicted" needs control cells ({control!r}) in the prediction of context {absent[0]!r}, '
            'and there are none; predict them, or use control_cells="real".'
        )
    wanted += [condition for condition in controls if condition in predicted.rows]
    rows = np.sort(np.concatenate([predicted.rows[condition] for condition in wanted]))
    return predicted.take(rows), reference.restricted_to(shared), checks


def value_checks(
    predicted: CellTable, profiles: Mapping[str, CellProfile], reference: EvaluationReference
) -> list[Check]:
    """Check single values and the scale of cells on both sides, each context by a sample of its predicted cells.

    Seconds at most, however large the data.
    """
    ranges = [check_range(predicted, role="prediction"), reference.range_check]
    if any(np.isnan(check.value) for check in ranges):
        return ranges  # with NaN or infinite values every further statistic would be one too
    found = {
        context: [
            check_integers(profiles[context], role="prediction"),
            check_integers(observed, role="reference"),
            check_logarithm(observed),
            check_scale(profiles[context], observed),
            check_totals_spread(profiles[context], observed),
        ]
        for context, observed in reference.profiles.items()
    }
    return [*ranges, *most_severe(found)]


def count_checks(predicted: CellTable, reference: EvaluationReference) -> list[Check]:
    """Check raw counts on both sides."""
    both = [check_counts(predicted, role="prediction"), check_counts(reference.cells, role="reference")]
    sides = [(side.context, cell_totals(side)) for side in (predicted, reference.cells)]
    depth = {c: [check_depth(*(totals[context == c] for context, totals in sides))] for c in reference.contexts}
    return [*both, *most_severe(depth)]


def _shared_conditions(predicted: CellTable, observed: CellTable, *, control: str) -> dict[str, tuple[str, ...]]:
    """Perturbations of each context that both sides have, contexts without any left out; at least one must be."""
    shared: dict[str, tuple[str, ...]] = {}
    for context in observed.contexts:
        there = set(predicted.perturbations(context, control=control))
        both = tuple(p for p in observed.perturbations(context, control=control) if p in there)
        if both:
            shared[context] = both
    if not shared:
        raise ValueError(
            "The prediction and the reference share no condition. The prediction has contexts "
            f"{_some(predicted.contexts)} and perturbations {_some(np.unique(predicted.perturbation))}; the reference "
            f"has {_some(observed.contexts)} and {_some(np.unique(observed.perturbation))}."
        )
    return shared


def _some(names: NDArray[np.str_] | tuple[str, ...]) -> str:
    return f"[{', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''}]"


def _genes(cells: CellTable, reference: EvaluationReference) -> Check:
    surplus = cells.n_genes - reference.cells.n_genes
    other_order = not np.array_equal(cells.genes, reference.cells.genes)
    message = "the genes of the prediction were brought into the reference's order."
    if surplus:
        message = f"{surplus} genes of the prediction are not in the reference and are not scored."
    return check_if(other_order, "genes", surplus, "any order", message, "note")


def _missing(shared: Mapping[str, tuple[str, ...]], reference: EvaluationReference) -> Check:
    conditions = [(c, p) for c, perturbations in reference.conditions.items() for p in perturbations]
    lost = [(c, p) for c, p in conditions if p not in shared.get(c, ())]
    context, perturbation = (lost or conditions)[0]
    message = (
        f"{len(lost)} of {len(conditions)} conditions of the reference were not predicted (first: {perturbation!r} in "
        f"{context!r}) and are not scored; PDS ranks among the rest, so compare with results on the same ones only."
    )
    return check_if(lost != [], "conditions without a prediction", len(lost), "0", message)


def _surplus(shared: Mapping[str, tuple[str, ...]], predicted: CellTable, control: str) -> Check:
    extra = [f"{p!r} in {c!r}" for c, p in predicted.rows if p != control and p not in shared.get(c, ())]
    message = f"{len(extra)} predicted conditions are not in the reference (first: {', '.join(extra[:1])})."
    return check_if(extra != [], "predictions without a truth", len(extra), "0", message, "note")
