"""What a network's change is added to: a prior chosen, learned, described, and its cells."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scvi_tahoe._names import beside_labels
from scvi_tahoe.data import aligned_expression, dense_rows, label_columns, make_store
from scvi_tahoe.response._members import Origin
from scvi_tahoe.response._prior import CellPrior, PriorOrigin
from scvi_tahoe.response._response_report import response_report, short_report
from scvi_tahoe.response._start import MovedControls, ResponseStart, tables_of
from scvi_tahoe.response._uncertainty import probability_of_direction, probability_of_effect, usual_change

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.data import (
        CellSetDataset,
        CellStore,
        Condition,
        ConditionIndex,
        ConditionRequest,
        DataSpec,
        EmbeddingTable,
        Screen,
        ScreenKeys,
    )
    from scvi_tahoe.response._prior import Prior, PriorTarget
    from scvi_tahoe.response._response_model import Criterion
    from scvi_tahoe.response._start import Way

logger = logging.getLogger(__name__)

_FEWEST_COMBINED = 6  # combinations of which some are held out
_NAMED = 5  # conditions that a row of the report names, of each part


LearnedPrior = CellPrior | ResponseStart


def makes_cells(kind: str) -> bool:
    """Whether what the network corrects are cells of each condition, rather than the controls or a shift of them."""
    return kind in ("cells", "response")


def choose_prior(index: ConditionIndex, keys: ScreenKeys, table: EmbeddingTable) -> Prior:
    """Choose the response model wherever other conditions say something about one, and there are a few of them."""
    components = [keys.parser.components(label) for label in index.perturbations]
    has_parts = keys.combination_separator is not None and sum(len(of_label) == 1 for of_label in components) > 1
    has_doses = len({of_label[0].name for of_label in components if len(of_label) == 1}) < len(components)
    says = (
        index.perturbations_recur or len(index.contexts) > 1 or has_parts or (keys.dose_key is not None and has_doses)
    )
    return "response" if len(index.conditions) > 2 and (says or not table.components.one_hot) else "none"


def predictable_labels(index: ConditionIndex, keys: ScreenKeys, table: EmbeddingTable) -> list[str]:
    """Name the perturbations that others say something about: combinations of measured ones if there are several.

    Otherwise those that are in several contexts, at several doses, or in an embedding table.
    """
    parts = {label: keys.parser.components(label) for label in index.perturbations}
    combined = [p for p, of in parts.items() if len(of) > 1 and all(str(part) in parts for part in of)]
    if len(combined) >= _FEWEST_COMBINED:
        return combined
    doses, contexts = Counter(of[0].name for of in parts.values()), Counter(c.perturbation for c in index.conditions)
    known = {name for rows in tables_of(table).values() for name in rows.index}
    return [
        p for p, of in parts.items()
        if contexts[p] > 1 or (of[0].dose is not None and doses[of[0].name] > 1) or all(x.name in known for x in of)
    ]  # fmt: skip


def learn_prior(
    kind: Prior,
    spec: DataSpec,
    screen: Screen,
    rows: np.ndarray,
    *,
    seed: int,
    device: torch.device | None = None,
    asked: np.ndarray | None = None,
    progress: bool = False,
    like: Mapping[str, Any] | None = None,
    criterion: Criterion = "error",
) -> LearnedPrior:
    """Learn a prior from the training cells of a screen.

    Parameters
    ----------
    kind
        Kind of prior.
    spec, screen
        What the model fixes about its data, and these.
    rows
        Training cells; no other perturbed cell is looked at.
    seed
        Random seed.
    device
        Where the response model is fitted. If None, the CPU.
    asked
        Cells of the conditions that will be asked for: if most of these perturbations are not among the training
        cells, training conditions of the response model do not know their own perturbation in other contexts either.
    progress
        Whether to show a bar if it takes more than some seconds.
    like
        Plain values of a response model of most of these cells, which is extended instead of learned anew.
    criterion
        Criterion of the response model: small squared errors, or perturbations told apart.
    """
    expression, rows = aligned_expression(spec, screen), screen.index.weighted(rows)
    if kind != "response":
        return CellPrior.from_cells(kind, expression, screen.index, rows, seed=seed)
    way: Way = "condition"
    if asked is not None and len(asked):
        names, parser = np.array(screen.perturbation.names), spec.keys.parser
        known = set(names[np.unique(screen.perturbation.codes[rows])].tolist())
        labels = names[np.unique(screen.perturbation.codes[asked])].tolist()
        # a combination of measured perturbations is predicted from these
        fresh = [p not in known and not {*map(str, parser.components(p))} <= known for p in labels]
        way = "perturbation" if np.mean(fresh) > 0.5 else "condition"
    found = ResponseStart.from_cells(
        expression, screen.index, rows, spec.table, spec.keys.parser, spec.genes,
        way=way, device=device or torch.device("cpu"), seed=seed, progress=progress,
        like=None if like is None else ResponseStart.from_dict(like), criterion=criterion,
        sources=screen.context_sources, weights=screen.context_weights,
    )  # fmt: skip
    if like is None:
        logger.info(short_report(found.fitted))
    return found


def prior_of(learned: Mapping[str, Any]) -> LearnedPrior:
    """Return a prior of its plain values."""
    return (ResponseStart if learned["kind"] == "response" else CellPrior).from_dict(dict(learned))


def _targets(prior: LearnedPrior, spec: DataSpec, screen: Screen, conditions: Sequence[Condition]) -> dict[str, Any]:
    expression = aligned_expression(spec, screen)
    contexts = sorted({condition.context for condition in conditions})
    return prior.targets((c, dense_rows(expression, screen.index.controls(c))) for c in contexts)


def prior_and_targets(
    learned: Mapping[str, Any], spec: DataSpec, screen: Screen, conditions: Sequence[Condition]
) -> tuple[LearnedPrior, dict[str, Any]]:
    """Return a learned prior, and what it needs to know of the contexts of these conditions."""
    prior = prior_of(learned)
    return prior, _targets(prior, spec, screen, conditions)


def with_prior(
    dataset: CellSetDataset,
    prior: LearnedPrior,
    spec: DataSpec,
    screen: Screen,
    *,
    device: torch.device,
    seed: int,
    progress: bool,
) -> CellSetDataset:
    """Return the dataset with what a learned prior says of all conditions of a screen, whose labels have rows."""
    conditions = screen.index.conditions
    targets = _targets(prior, spec, screen, conditions)
    if isinstance(prior, ResponseStart):
        return replace(dataset, start=prior.start_table(conditions, targets, spec.table))
    base = prior.base_from(targets, conditions, spec.table, seed=seed, device=device, progress=progress)
    if base.cells is None:
        return replace(dataset, residual_shift=base.shift)
    return replace(dataset, residual_input=make_store(base.cells, device), residual_input_rows=base.rows)


def wanted_means(
    learned: Mapping[str, Any], spec: DataSpec, screen: Screen, conditions: Sequence[Condition]
) -> np.ndarray | None:
    """Return the means that conditions start from, ``[conditions, G]``; None where cells have to be made for that."""
    if learned["kind"] != "response":
        return None
    prior, targets = prior_and_targets(learned, spec, screen, conditions)
    return prior.wanted_means(conditions, targets, spec.table)  # type: ignore[union-attr]


def report_of(learned: Mapping[str, Any]) -> pd.DataFrame:
    """Return what the response model of plain values learned."""
    return response_report(ResponseStart.from_dict(learned).fitted)


def effects_of(
    learned: Mapping[str, Any],
    spec: DataSpec,
    screen: Screen,
    conditions: Mapping[Condition, Condition],
    *,
    use_measured: bool,
    min_change: float | None,
) -> pd.DataFrame:
    """Return the table of :meth:`~scvi_tahoe.TahoeST.predict_effects`; ``conditions`` are as in :func:`prior_table`."""
    known, genes = list(conditions.values()), spec.genes
    prior, targets = prior_and_targets(learned, spec, screen, known)
    changes, deviation, support = prior.effects(known, targets, spec.table)  # type: ignore[union-attr]
    if use_measured:
        changes, deviation = prior.with_measurements(known, changes, deviation)  # type: ignore[union-attr]
    # the mean of the controls has an error that all conditions of a context share, so that none of them shows it
    of_controls = np.stack([targets[c.context].variance_G / targets[c.context].n_cells for c in known])
    deviation = np.sqrt(np.square(deviation) + of_controls)
    min_change = usual_change(prior.fitted) if min_change is None else min_change  # type: ignore[union-attr]
    columns: dict[str, Any] = dict(label_columns([c.perturbation for c in conditions], spec.keys))
    if (key := spec.keys.context_key) is not None:
        columns[key] = [c.context for c in conditions]
    columns = {name: np.repeat(np.asarray(values, dtype=object), len(genes)) for name, values in columns.items()}
    of_gene = {
        "gene": np.tile(genes, len(known)), "change": changes.ravel(), "sd": deviation.ravel(),
        "p_effect": probability_of_effect(changes, deviation, min_change).ravel(),
        "p_direction": probability_of_direction(changes, deviation).ravel(),
        "direction": np.where(changes < 0, -1, 1).ravel(), "support": np.repeat(support, len(genes)),
    }  # fmt: skip
    found = pd.DataFrame(beside_labels(columns, of_gene))
    found.attrs["min_change"] = min_change
    return found


def planned(
    learned: Mapping[str, Any],
    spec: DataSpec,
    screen: Screen,
    conditions: Mapping[Condition, Condition],
    n: int,
    to_predict: Mapping[Condition, Condition] | None = None,
) -> pd.DataFrame:
    """Return the table of :meth:`~scvi_tahoe.TahoeST.plan_next`; conditions are as in :func:`prior_table`."""
    known = list(conditions.values())
    counted = None if to_predict is None else list(to_predict.values())
    start, targets = prior_and_targets(learned, spec, screen, [*known, *(counted or ())])
    picked, chosen = start.planned(known, targets, spec.table, n, counted)  # type: ignore[union-attr]
    columns: dict[str, Any] = dict(label_columns([c.perturbation for c in picked], spec.keys))
    if (key := spec.keys.context_key) is not None:
        columns[key] = [c.context for c in picked]
    return pd.DataFrame(beside_labels(columns, chosen))


def residual_cells(
    prior: LearnedPrior,
    targets: Mapping[str, Any],
    conditions: Sequence[Condition],
    requests: Sequence[ConditionRequest],
    table: EmbeddingTable,
    cells: CellStore,
    *,
    seed: int,
    device: torch.device,
) -> ResidualCells | MovedControls:
    """Return what makes the cells of a prediction that the network corrects, when they are asked for."""
    if isinstance(prior, ResponseStart):
        labels = [(c.context, table.known_name(c.perturbation)) for c in conditions]
        profiles = [targets[c.context] for c in conditions]
        return MovedControls(
            prior.wanted_means(conditions, targets, table), profiles, requests, labels, cells, seed, device
        )
    sizes = {c: len(r.controls) for c, r in zip(conditions, requests, strict=True)}
    return ResidualCells(prior, targets, sizes, table, seed, device)


@dataclass
class ResidualCells:
    """Makes the prior's cells of the conditions of a prediction, and forgets them when later ones are asked for.

    ``sizes`` are numbers of cells, in the order of the conditions, and ``table`` covers them.
    """

    prior: CellPrior
    targets: Mapping[str, PriorTarget]
    sizes: Mapping[Condition, int]
    table: EmbeddingTable
    seed: int
    device: torch.device
    _blocks: dict[int, sp.csr_matrix] = field(default_factory=dict)

    def of_conditions(self, first: int, stop: int) -> tuple[sp.csr_matrix, int]:
        """Cells of the conditions from ``first`` to before ``stop``: CSR float32 ``[rows, G]``, and the first row."""
        conditions = list(self.sizes)
        kept = {k: block for k, block in self._blocks.items() if first <= k < stop}
        if missing := [k for k in range(first, stop) if k not in kept]:
            base = self.prior.base_from(
                self.targets, [conditions[k] for k in missing], self.table,
                n_cells=self.sizes, seed=self.seed, device=self.device,
            )  # fmt: skip
            if len(missing) == len(conditions):
                return base.cells, 0  # type: ignore[return-value]  # all at once: nothing will be asked for again
            for k in missing:
                rows = base.rows[conditions[k]]  # type: ignore[index]
                kept[k] = base.cells[rows[0] : rows[-1] + 1]  # type: ignore[index]
        self._blocks = kept
        cells = sp.vstack([kept[k] for k in range(first, stop)], format="csr")
        return cells, sum(self.sizes[condition] for condition in conditions[:first])


def prior_table(
    learned: Mapping[str, Any] | None, spec: DataSpec, screen: Screen, conditions: Mapping[Condition, Condition]
) -> pd.DataFrame:
    """Return the table of :meth:`~scvi_tahoe.TahoeST.prior_report`.

    ``conditions`` has for each condition, as it was asked for, the same in the spelling of the spec's table.
    """
    known = list(conditions.values())
    if learned is None:
        n_controls = {context: len(screen.index.controls(context)) for context in {c.context for c in known}}
        origins = [PriorOrigin(Origin.CONTROL_CELLS, (), n_controls[c.context], np.nan) for c in known]
        corrected = np.ones(len(known), dtype=bool)
    else:
        prior, targets = prior_and_targets(learned, spec, screen, known)
        corrected = prior.is_corrected(known, spec.table)
        if isinstance(prior, ResponseStart):
            origins = [PriorOrigin(origin, (), 0, np.nan) for origin in prior.starts_from(known, spec.table)]
            confidence = prior.confidence(known, targets, spec.table)
        else:
            origins = prior.origins(targets, known, spec.table)
    columns: dict[str, Any] = dict(label_columns([c.perturbation for c in conditions], spec.keys))
    if (key := spec.keys.context_key) is not None:
        columns[key] = [c.context for c in conditions]
    own: dict[str, Any] = {"starts_from": [origin.starts_from.value for origin in origins]}
    if learned is not None and learned["kind"] == "response":
        return pd.DataFrame(beside_labels(columns, {**own, **confidence, "corrected": corrected}))
    own["made_from"] = ["; ".join(_listed(w, key is not None) for w in origin.made_from) for origin in origins]
    own["n_cells"] = [origin.n_cells for origin in origins]
    own["kept"] = [origin.kept for origin in origins]
    own["corrected"] = corrected
    return pd.DataFrame(beside_labels(columns, own))


def _listed(weights: Mapping[Condition, float], says_context: bool) -> str:
    """Conditions and their weights, the heaviest first: ``"A in X (0.6), A in Y (0.4)"``."""
    heaviest = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{c if says_context else c.perturbation} ({weight:.2g})" for c, weight in heaviest[:_NAMED]]
    if rest := [weight for _, weight in heaviest[_NAMED:]]:
        listed.append(f"{len(rest)} more ({sum(rest):.2g})")
    return ", ".join(listed)
