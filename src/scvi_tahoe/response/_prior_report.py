"""What predictions start from: a table for people to read, one row per condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe.data import label_columns
from scvi_tahoe.response._prior import Origin, PriorOrigin
from scvi_tahoe.response._residual_input import prior_and_targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_tahoe.data import Condition, DataSpec, Screen

_NAMED = 5  # conditions that a row names, of each part


def prior_table(
    learned: Mapping[str, Any] | None,
    spec: DataSpec,
    screen: Screen,
    conditions: Mapping[Condition, Condition],
) -> pd.DataFrame:
    """Return the table of :meth:`~scvi_tahoe.TahoeST.prior_report`.

    Parameters
    ----------
    learned
        The prior, as plain values; None without one.
    spec
        What the model fixes about its data; its table covers the conditions.
    screen
        The data that a prediction would start from.
    conditions
        For each condition as it was asked for, the same in the table's spelling.

    Returns
    -------
    One row a condition, in their order.
    """
    known = list(conditions.values())
    if learned is None:
        n_controls = {context: len(screen.index.controls(context)) for context in {c.context for c in known}}
        origins = [PriorOrigin(Origin.CONTROL_CELLS, (), n_controls[c.context], np.nan) for c in known]
        corrected = np.ones(len(known), dtype=bool)
    else:
        prior, targets = prior_and_targets(learned, spec, screen, known)
        origins, corrected = prior.origins(targets, known, spec.table), prior.is_corrected(known, spec.table)
    keys = spec.keys
    columns: dict[str, Any] = dict(label_columns([c.perturbation for c in conditions], keys))
    if keys.context_key is not None:
        columns[keys.context_key] = [c.context for c in conditions]
    columns["starts_from"] = [origin.starts_from.value for origin in origins]
    columns["made_from"] = [_made_from(origin, says_context=keys.context_key is not None) for origin in origins]
    columns["n_cells"] = [origin.n_cells for origin in origins]
    columns["kept"] = [origin.kept for origin in origins]
    columns["corrected"] = corrected
    return pd.DataFrame(columns)


def _made_from(origin: PriorOrigin, *, says_context: bool) -> str:
    """Conditions and their weights, the heaviest first: ``"A in X (0.6), A in Y (0.4)"``, parts after each other."""
    return "; ".join(_of_part(weights, says_context=says_context) for weights in origin.made_from)


def _of_part(weights: Mapping[Condition, float], *, says_context: bool) -> str:
    heaviest = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{c if says_context else c.perturbation} ({weight:.2g})" for c, weight in heaviest[:_NAMED]]
    if rest := [weight for _, weight in heaviest[_NAMED:]]:
        said.append(f"{len(rest)} more ({sum(rest):.2g})")
    return ", ".join(said)
