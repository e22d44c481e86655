"""Priors of earlier versions, for saved models: a change known from elsewhere, or cells moved from there.

A perturbation that was seen in other contexts is mostly predicted by what it did there. So the prediction starts from
that, and the network learns what is different here. While training, the prior of a condition is made from *other*
conditions only, exactly as it is for an unmeasured condition.

What a perturbation did elsewhere is not taken relative to the controls alone. All perturbed cells of a screen differ
from its controls in ways that belong to the experiment (lanes, days, guides), others in every context; so contexts are
compared through their *anchors*, the perturbations seen in both and the controls as one more (what is left
without the shared part is what Systema, Viñas Torné et al. 2025, measures). And what is left of a gene's difference is
kept only as far as it exceeds its noise: the non-negative garrote (Breiman 1995, Technometrics 37:373),
``1 - s^2 / d^2`` where that is positive.

A combination that was measured nowhere else starts from its parts: the anchors and what each part differs from them,
``anchors + d_A + d_B``. Adding the parts' changes from the controls would count what all perturbed cells share once for
every part. The noise of the parts adds up, too, so more of it is taken away: what is kept of a gene's difference is the
mean of the garrote, which looks at this difference alone, and of empirical Bayes (Efron & Morris 1973, JASA 68:117),
``t / (t + s^2)``, where ``t`` is how much the gene differs among single perturbations, times how strong this one is.
What is left to the network is what is not additive.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch

from scvi_tahoe._constants import STREAMS
from scvi_tahoe._messages import progress_bar
from scvi_tahoe.data import Condition, dense_rows, draw_window
from scvi_tahoe.response._marginals import QUANTILES, Population, move_between, with_marginals
from scvi_tahoe.response._members import Origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scvi_tahoe.data import Component, ConditionIndex, EmbeddingTable

Prior = Literal["auto", "none", "mean", "transfer", "cells", "response"]
PRIORS: tuple[Prior, ...] = get_args(Prior)

_CHUNK = 512  # genes made dense at once
_MAX_SOURCES = 64  # conditions that one prior is made from
_MAX_DONORS = 512  # cells kept of a condition
_POOL = 1024  # donors of one prior
_MAX_ANCHORS = 64  # perturbations that stand for a context
_TINY = 1e-12  # below any squared difference that counts
_ANCHOR_CELLS = 16_384  # cells of all of them; their noise is in every mean that is predicted


@dataclass(frozen=True)
class PriorStart:
    """The prior of some conditions, ready to be handed to the network.

    Attributes
    ----------
    cells
        CSR float32 ``[rows, G]`` of a prior of cells; None otherwise.
    rows
        Which rows each condition draws from; None otherwise.
    shift
        float32 ``[conditions, G]`` of a prior of means; None otherwise.
    """

    cells: sp.csr_matrix | None
    rows: dict[Condition, np.ndarray] | None
    shift: np.ndarray | None


@dataclass(frozen=True)
class PriorOrigin:
    """What the prior of one condition is made from.

    Attributes
    ----------
    starts_from
        Kind of the conditions, see :meth:`CellPrior.starts_from`.
    made_from
        Training conditions and their weights, which add up to 1: one mapping for each part of a combination that starts
        from its parts, else one.
    n_cells
        Training cells of all of these conditions.
    kept
        Length of what is kept of the difference to the anchors over the length of that difference, over all genes (and
        parts), from 0 to 1. A prior of the kind ``'mean'`` keeps all of its change.
    """

    starts_from: Origin
    made_from: tuple[dict[Condition, float], ...]
    n_cells: int
    kept: float


@dataclass(frozen=True)
class CellPrior:
    """What a prior keeps of the training data, saved with the model.

    Attributes
    ----------
    kind
        ``'mean'``, ``'transfer'`` or ``'cells'``.
    conditions
        Training conditions.
    means, variances
        float32 ``[conditions, G]`` of their cells.
    n_cells
        Number of them.
    contexts
        Contexts with controls.
    control_means, control_variances
        float32 ``[contexts, G]`` of the control cells.
    n_controls
        Number of them.
    control_quantiles
        float32 ``[contexts, Q, G]``: expression of the controls at evenly spaced quantiles.
    donors
        CSR float32 ``[rows, G]``: perturbed training cells, at most ``max_donors`` a condition; empty unless the kind
        is ``'cells'``.
    donor_condition
        Condition of each donor.
    """

    kind: Prior
    conditions: tuple[Condition, ...]
    means: np.ndarray
    variances: np.ndarray
    n_cells: np.ndarray
    contexts: tuple[str, ...]
    control_means: np.ndarray
    control_variances: np.ndarray
    n_controls: np.ndarray
    control_quantiles: np.ndarray
    donors: sp.csr_matrix
    donor_condition: np.ndarray

    @classmethod
    def from_cells(
        cls,
        kind: Prior,
        expression: sp.csr_matrix | np.ndarray,
        index: ConditionIndex,
        rows: np.ndarray,
        *,
        max_donors: int = _MAX_DONORS,
        seed: int = 0,
    ) -> CellPrior:
        """Keep of the training cells what the prior needs.

        Parameters
        ----------
        kind
            Kind of prior.
        expression
            Cells x genes of the whole screen.
        index
            Its conditions.
        rows
            Training cells; no other perturbed cell is looked at.
        max_donors
            Most cells kept of a condition.
        seed
            Random seed for choosing cells if there are more.

        Raises
        ------
        ValueError
            If there are fewer than two conditions.
        """
        present = np.unique(index.condition_of_cell[rows])
        if len(present) < 2:
            raise ValueError(
                f"prior={kind!r} makes each condition from others, and the training cells have {len(present)}; train "
                "on two or more conditions, or take prior='none'."
            )
        rng = np.random.default_rng(seed)
        contexts = tuple(c for c in index.contexts if len(index.controls(c)))
        control_means, control_variances, n_controls, control_quantiles = [], [], [], []
        for context in contexts:
            controls = dense_rows(expression, index.controls(context))
            mean, variance = _moments(controls)
            control_means.append(mean)
            control_variances.append(variance)
            n_controls.append(len(controls))
            control_quantiles.append(_quantiles(controls))
        means, variances, n_cells, donors, owner = [], [], [], [], []
        of_condition = index.condition_of_cell[rows]
        by_condition = np.split(
            rows[np.argsort(of_condition, kind="stable")], np.cumsum(np.bincount(of_condition))[:-1]
        )
        for position, condition in enumerate(present):
            cells = by_condition[condition]
            block = expression[cells]
            mean, variance = _moments(block)
            means.append(mean)
            variances.append(variance)
            n_cells.append(len(cells))
            if kind == "cells":
                chosen = rng.permutation(len(cells))[:max_donors]
                donors.append(sp.csr_matrix(block[chosen], dtype=np.float32))
                owner.append(np.full(len(chosen), position))
        nothing = sp.csr_matrix((0, expression.shape[1]), dtype=np.float32)
        return cls(
            kind=kind,
            conditions=tuple(index.conditions[c] for c in present),
            means=np.stack(means),
            variances=np.stack(variances),
            n_cells=np.asarray(n_cells),
            contexts=contexts,
            control_means=np.stack(control_means),
            control_variances=np.stack(control_variances),
            n_controls=np.array(n_controls),
            control_quantiles=np.stack(control_quantiles),
            donors=sp.vstack(donors, format="csr") if donors else nothing,
            donor_condition=np.concatenate(owner) if owner else np.empty(0, dtype=np.int64),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values and arrays, for saving."""
        donors = self.donors
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "conditions": [tuple(c) for c in self.conditions],
            "donors": {"data": donors.data, "indices": donors.indices, "indptr": donors.indptr, "shape": donors.shape},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CellPrior:
        """Return the prior of :meth:`to_dict`."""
        donors = values["donors"]
        matrix = sp.csr_matrix((donors["data"], donors["indices"], donors["indptr"]), shape=donors["shape"])
        conditions = tuple(Condition(*c) for c in values["conditions"])
        return cls(**{**values, "conditions": conditions, "contexts": tuple(values["contexts"]), "donors": matrix})

    def base(
        self,
        conditions: Sequence[Condition],
        controls: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
        table: EmbeddingTable,
        *,
        n_cells: int | Mapping[Condition, int] = 512,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> PriorStart:
        """Make the prior of conditions, each from other conditions only.

        Parameters
        ----------
        conditions
            To be predicted or trained on.
        controls
            Control cells of each context among them, dense; pairs may come one at a time where memory is short.
        table
            Perturbation embeddings. Where no other context has the perturbation itself, they say which parts a
            combination has, and which perturbations are the nearest to one without measured parts.
        n_cells
            Cells of a prior of cells, for each condition.
        seed
            Random seed for the draws.
        device
            Where quantiles are computed.
        """
        return self.base_from(self.targets(controls), conditions, table, n_cells=n_cells, seed=seed, device=device)

    def targets(self, controls: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> dict[str, PriorTarget]:
        """Return what a prior needs to know of the contexts that it is made for.

        Parameters
        ----------
        controls
            Control cells of each, dense; pairs may come one at a time where memory is short.
        """
        pairs = controls.items() if isinstance(controls, Mapping) else controls
        return {c: PriorTarget(c, *_moments(block), len(block), _quantiles(block)) for c, block in pairs}

    def base_from(
        self,
        contexts: Mapping[str, PriorTarget],
        conditions: Sequence[Condition],
        table: EmbeddingTable,
        *,
        n_cells: int | Mapping[Condition, int] = 512,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> PriorStart:
        """As :meth:`base`, for some conditions of contexts that were looked at before.

        The prior of a condition is the same to the last bit, whichever others are made with it.

        Parameters
        ----------
        contexts
            Result of :meth:`targets`: all contexts that are predicted, for any conditions made now.
        conditions, table, n_cells, seed, device
            As in :meth:`base`.
        progress
            Show a bar where it takes more than some seconds.
        """
        sources = dict(self._conditions_used(contexts, conditions, table))
        if self.kind != "cells":
            shifts = [self._shift(source, contexts[c.context]) for c, source in sources.items()]
            return PriorStart(None, None, np.stack(shifts).astype(np.float32))
        sizes = {c: n_cells if isinstance(n_cells, int) else n_cells[c] for c in conditions}
        keeps = {c: [self.kept_difference(s, weight)[1] for weight in s.weights] for c, s in sources.items()}
        blocks: dict[Condition, list[sp.csr_matrix]] = {c: [] for c in conditions}
        by_anchors = sorted(sources.items(), key=lambda item: item[1].without)
        starts = range(0, self.means.shape[1], _CHUNK)
        bar = progress_bar(
            total=len(starts) * len(by_anchors), desc="starting point", unit="block", delay=3, disable=not progress
        )
        for start in starts:
            genes = slice(start, min(start + _CHUNK, self.means.shape[1]))
            maker = _CellMaker(self, contexts, genes, torch.device(device))
            for condition, source in by_anchors:
                # a generator for each condition, so that its cells do not depend on what else is asked
                label = (condition.context, table.known_name(condition.perturbation))
                rng = np.random.default_rng((seed, STREAMS.PRIOR_CELLS, *(zlib.crc32(x.encode()) for x in label)))
                draws = np.random.default_rng((*rng.integers(2**31, size=2), start))
                blocks[condition].append(maker.cells(source, keeps[condition], sizes[condition], rng, draws))
                bar.update()
        bar.close()
        ends = np.cumsum([sizes[c] for c in conditions])
        rows = {c: np.arange(end - sizes[c], end) for c, end in zip(conditions, ends, strict=True)}
        return PriorStart(sp.vstack([sp.hstack(b) for b in blocks.values()], format="csr"), rows, None)

    # ------------------------------------------------------------------ which conditions, and how much of them

    def starts_from(self, conditions: Sequence[Condition], table: EmbeddingTable) -> list[Origin]:
        """Return what the prior of each condition starts from.

        Parameters
        ----------
        conditions
            To be predicted or trained on.
        table
            As in :meth:`base`.
        """
        if self.kind == "mean":
            return [Origin.OTHERS] * len(conditions)
        contexts: dict[str, set[str]] = {}
        for condition in self.conditions:
            contexts.setdefault(condition.perturbation, set()).add(condition.context)
        parser = None if table.composition is None else table.composition.parser
        names = [*contexts, *(c.perturbation for c in conditions)]
        parts = {} if parser is None else {name: parser.components(name) for name in dict.fromkeys(names)}
        alone = {parts[name][0] for name in contexts if name in parts and len(parts[name]) == 1}
        known = {part.name for name in contexts for part in parts.get(name, ())}
        n_doses = Counter(part.name for part in alone if part.dose is not None)

        def origin(context: str, label: str) -> Origin:
            if contexts.get(label, set()) - {context}:
                return Origin.OTHER_CONTEXTS
            of_label = parts.get(label, ())
            if len(of_label) == 1 and n_doses[of_label[0].name] > (of_label[0] in alone):
                return Origin.NEAREST_DOSES
            if len(of_label) > 1 and not alone.isdisjoint(of_label):
                return Origin.PARTS if alone.issuperset(of_label) else Origin.SOME_PARTS
            if table.one_hot or label not in table.row_of:
                return Origin.OTHERS
            if not table.components.one_hot:
                return Origin.NEAREST
            return Origin.SHARING_PARTS if any(part.name in known for part in of_label) else Origin.OTHERS

        return [origin(*condition) for condition in conditions]

    def origins(
        self, contexts: Mapping[str, PriorTarget], conditions: Sequence[Condition], table: EmbeddingTable
    ) -> list[PriorOrigin]:
        """Return what the prior of each condition is made from. Nothing is made, so this is fast.

        Parameters
        ----------
        contexts, conditions, table
            As in :meth:`base_from`.
        """
        return [self._origin(source) for _, source in self._conditions_used(contexts, conditions, table)]

    def _origin(self, source: _Source) -> PriorOrigin:
        used = [np.flatnonzero(weight) for weight in source.weights]
        weights = [
            {self.conditions[i]: float(weight[i]) for i in rows}
            for rows, weight in zip(used, source.weights, strict=True)
        ]
        n_cells = int(self.n_cells[np.unique(np.concatenate(used))].sum())
        if self.kind == "mean":
            return PriorOrigin(source.origin, tuple(weights), n_cells, 1.0)
        pairs = [self.kept_difference(source, weight) for weight in source.weights]
        whole, kept = (sum(np.square(d * k**n).sum() for d, k in pairs) for n in (0, 1))
        return PriorOrigin(source.origin, tuple(weights), n_cells, float(np.sqrt(kept / max(whole, _TINY))))

    def _conditions_used(
        self, contexts: Mapping[str, PriorTarget], conditions: Sequence[Condition], table: EmbeddingTable
    ) -> Iterator[tuple[Condition, _Source]]:
        for condition, origin in zip(conditions, self.starts_from(conditions, table), strict=True):
            yield condition, self._source(condition, contexts[condition.context], table, origin)

    def _source(self, condition: Condition, target: PriorTarget, table: EmbeddingTable, origin: Origin) -> _Source:
        """Conditions, and their weights, of what the prior of a condition starts from."""
        here, label = condition
        in_context = np.array([c.context == here for c in self.conditions])
        same = np.array([c.perturbation == label for c in self.conditions])
        if origin is Origin.OTHER_CONTEXTS:
            return _Source(here, (label,), (self._elsewhere(same & ~in_context, target),), origin)
        if origin is Origin.NEAREST_DOSES:
            weight, names = self._doses(condition, target, table)
            return _Source(here, (label, *names), (weight,), origin)
        if origin in (Origin.PARTS, Origin.SOME_PARTS):
            parts = self._parts(condition, target, table)
            names = tuple(self.conditions[int(w.argmax())].perturbation for w in parts)
            return _Source(here, (label, *names, *self._combinations(table)), parts, origin)
        others = in_context & ~same if (in_context & ~same).any() else ~same
        if origin in (Origin.NEAREST, Origin.SHARING_PARTS):
            near = _nearest(label, [c.perturbation for c in self.conditions], table, others)
            own = () if table.composition is None else table.composition.parser.components(label)
            if len(own) == 1 and own[0].dose is not None:
                near = self._at_dose(near, own[0], table)
            return _Source(here, (label,), (near,), origin)
        return _Source(here, (label,), (_normalised(others, np.ones(len(others))),), origin)

    def _elsewhere(self, conditions: np.ndarray, target: PriorTarget, *, share: np.ndarray | float = 1.0) -> np.ndarray:
        """Weights of conditions of one perturbation, by their cells and by how alike their contexts are to this.

        Times a share of each condition.
        """
        likeness = self._context_likeness(target)
        by_context = np.array([likeness[c.context] for c in self.conditions])
        return _normalised(conditions, by_context * np.minimum(self.n_cells, _MAX_DONORS))

    def _doses(
        self, condition: Condition, target: PriorTarget, table: EmbeddingTable
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Weights of other doses of a perturbation: in its context, where one was measured there, else in the others.

        And the labels of all its doses.
        """
        parser = table.composition.parser  # type: ignore[union-attr]
        (own,) = parser.components(condition.perturbation)
        of_drug = np.array([[p.name for p in parser.components(c.perturbation)] == [own.name] for c in self.conditions])
        names = tuple(sorted({self.conditions[i].perturbation for i in np.flatnonzero(of_drug)}))
        of_drug &= np.array([c.perturbation != condition.perturbation for c in self.conditions])
        here = of_drug & np.array([c.context == condition.context for c in self.conditions])
        weight = _normalised(here, np.ones(len(here))) if here.any() else self._elsewhere(of_drug, target)
        return self._at_dose(weight, own, table), names

    def _at_dose(self, weight: np.ndarray, part: Component, table: EmbeddingTable) -> np.ndarray:
        """Put the same weight of each perturbation and context on its doses next below and above that of a part.

        By the distance of their logarithms; beyond the measured ones on the last.
        """
        parser, dose = table.composition.parser, _log_dose(part)  # type: ignore[union-attr]
        doses: dict[tuple[str, str], list[tuple[float, int]]] = {}
        for i in np.flatnonzero(weight):
            context, label = self.conditions[i]
            parts = parser.components(label)
            if len(parts) == 1:
                doses.setdefault((context, parts[0].name), []).append((_log_dose(parts[0]), int(i)))
        weight = weight.copy()
        for measured in doses.values():
            measured.sort()
            rows = [i for _, i in measured]
            total, weight[rows] = weight[rows].sum(), 0.0
            above = int(np.searchsorted([d for d, _ in measured], dose))
            (lower, low), (upper, high) = measured[max(above - 1, 0)], measured[min(above, len(measured) - 1)]
            share = 1.0 if low == high else (dose - lower) / (upper - lower)
            weight[low] += total * (1 - share)
            weight[high] += total * share
        return weight

    def _parts(self, condition: Condition, target: PriorTarget, table: EmbeddingTable) -> tuple[np.ndarray, ...]:
        """Weights for each part of a combination that was measured alone: in its context, else in others."""
        parser = table.composition.parser  # type: ignore[union-attr]
        spelling = np.array([parser.spelling(c.perturbation) for c in self.conditions])
        in_context = np.array([c.context == condition.context for c in self.conditions])
        weights = []
        for part in parser.components(condition.perturbation):
            alone = spelling == str(part)
            if (alone & in_context).any():
                weights.append(_normalised(alone & in_context, np.ones(len(alone))))
            elif alone.any():
                weights.append(self._elsewhere(alone, target))
        return tuple(weights)

    def is_corrected(self, conditions: Sequence[Condition], table: EmbeddingTable) -> np.ndarray:
        """Whether what a network learned on top of this prior applies to conditions, bool ``[conditions]``.

        It does not to a combination that was not trained on and starts from its parts, unless at least half of the
        combinations that were trained on did, too: from others it learns what parts do, which such a start has already.

        Parameters
        ----------
        conditions
            To be predicted.
        table
            Perturbation embeddings, which say which parts a combination has.
        """
        combinations = set(self._combinations(table))
        trained = [c for c in self.conditions if c.perturbation in combinations]
        from_parts = [origin is Origin.PARTS for origin in self.starts_from(trained, table)]
        if trained and 2 * sum(from_parts) >= len(trained):
            return np.ones(len(conditions), dtype=bool)
        known, origins = set(self.conditions), self.starts_from(conditions, table)
        pairs = zip(conditions, origins, strict=True)
        return np.array([c in known or origin is not Origin.PARTS for c, origin in pairs], dtype=bool)

    def _combinations(self, table: EmbeddingTable) -> list[str]:
        """Training perturbations of several parts."""
        if table.composition is None:
            return []
        parser = table.composition.parser
        return sorted({c.perturbation for c in self.conditions if len(parser.components(c.perturbation)) > 1})

    def _context_likeness(self, target: PriorTarget) -> dict[str, float]:
        """How alike the controls of each training context are to these: inverse squared distance of the means."""
        distance = np.square(self.control_means - target.mean).mean(1)
        floor = 1e-3 + 0.1 * float(distance.mean())
        return dict(zip(self.contexts, (1.0 / (floor + distance)).tolist(), strict=True))

    def anchors(self, context: str, other: str, *, without: Sequence[str]) -> np.ndarray:
        """Weight of each training condition in a context's anchor population; the controls have what is missing to 1.

        The anchors are the perturbations seen in both contexts and the controls, each as much as the next. What is to
        be predicted, or is a part of it, must not be among them.
        """
        there = {c.perturbation for c in self.conditions if c.context == other}
        shared = [i for i, c in enumerate(self.conditions) if c.context == context and c.perturbation in there]
        shared = [i for i in shared if self.conditions[i].perturbation not in without][:_MAX_ANCHORS]
        weight = np.zeros(len(self.conditions))
        weight[shared] = 1 / (len(shared) + 1)
        return weight

    def anchor_moments(self, weight: np.ndarray, control: PriorTarget) -> tuple[np.ndarray, np.ndarray]:
        """Mean of an anchor population, and the variance of that mean: float ``[G]`` each."""
        rest = 1 - weight.sum()
        mean = _weighted(weight, self.means) + rest * control.mean
        noise = _weighted(np.square(weight / np.sqrt(self.n_cells)), self.variances)
        return mean, noise + rest**2 * control.variance / control.n_cells

    def control_of(self, context: str) -> PriorTarget:
        """Return the controls of a training context."""
        i = self.contexts.index(context)
        means, variances = self.control_means[i], self.control_variances[i]
        return PriorTarget(context, means, variances, int(self.n_controls[i]), self.control_quantiles[i])

    def kept_difference(self, source: _Source, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Difference between the weighted conditions and the anchors of their contexts, and the share to keep of it.

        Parameters
        ----------
        source
            What is made.
        weight
            One of its weights.

        Returns
        -------
        float ``[G]`` each.
        """
        difference, noise, others = (np.zeros(self.means.shape[1]) for _ in range(3))
        for context, of_context in self.by_context(weight):
            share = of_context.sum()
            anchors = self.anchors(context, source.context, without=source.without)
            mean, variance = self.anchor_moments(anchors, self.control_of(context))
            difference += _weighted(of_context, self.means) - share * mean
            noise += _weighted(np.square(of_context / np.sqrt(self.n_cells)), self.variances) + share**2 * variance
            others += share * self._excess(anchors, mean, variance)
        keep = np.clip(1 - noise / np.maximum(np.square(difference), _TINY), 0, 1)
        if source.origin not in (Origin.PARTS, Origin.SOME_PARTS):
            return difference, keep
        own = np.square(difference) - noise
        usual = np.maximum(others + own, 0)  # of a gene, times the number of perturbations that were looked at
        strength = max(own.sum(), 0.0) / max(usual.sum(), _TINY)  # of this perturbation, over that number
        expected = strength * usual
        return difference, (keep + expected / np.maximum(expected + noise, _TINY)) / 2

    def _excess(self, anchors: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """How much each gene of anchors differs from their mean, squared, beyond its noise, summed over anchors."""
        chosen = anchors > 0
        noise = self.variances[chosen] / self.n_cells[chosen, None] + variance
        return (np.square(self.means[chosen] - mean) - noise).sum(0)

    def by_context(self, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Weights of one context after the other."""
        of = np.array([c.context for c in self.conditions])
        for context in sorted(set(of[weight > 0])):
            yield str(context), np.where(of == context, weight, 0.0)

    def _shift(self, source: _Source, target: PriorTarget) -> np.ndarray:
        """Change of the mean that a prior of means predicts."""
        if self.kind == "mean":
            (weight,) = source.weights
            contexts = self.by_context(weight)
            changes = [_weighted(w, self.means) - w.sum() * self.control_of(k).mean for k, w in contexts]
            return np.sum(changes, axis=0)
        kept = [np.prod(self.kept_difference(source, weight), axis=0) for weight in source.weights]
        own = self.anchors(source.context, source.context, without=source.without)
        return self.anchor_moments(own, target)[0] + np.sum(kept, axis=0) - target.mean


@dataclass(frozen=True)
class _Source:
    """What the prior of a condition is made from.

    Attributes
    ----------
    context
        Context of the condition.
    without
        Perturbations that are no anchors: its own; its other doses, where it starts from these; and those of a
        combination's parts and all combinations, as what single perturbations share is to be counted once.
    weights
        Weight of each training condition, one array for each part of a combination, else one.
    origin
        What these stand for.
    """

    context: str
    without: tuple[str, ...]
    weights: tuple[np.ndarray, ...]
    origin: Origin


@dataclass(frozen=True)
class PriorTarget:
    """Control cells of a context: moments and quantiles of their genes."""

    context: str
    mean: np.ndarray
    variance: np.ndarray
    n_cells: int
    quantiles_QG: np.ndarray


class _CellMaker:
    """Makes the cells of a prior of cells, for some of the genes.

    Parameters
    ----------
    prior
        What is known.
    targets
        Controls of the contexts that are predicted.
    genes
        Which genes.
    device
        Where.
    """

    def __init__(
        self, prior: CellPrior, targets: Mapping[str, PriorTarget], genes: slice, device: torch.device
    ) -> None:
        self._prior, self._targets, self._genes, self._device = prior, targets, genes, device
        self._populations: dict[tuple[str, str], tuple[Population, np.ndarray]] = {}
        self._anchors: dict[tuple[str, str], torch.Tensor] = {}
        self._without: tuple[str, ...] = ()
        self._donors = prior.donors[:, genes]

    def cells(
        self, source: _Source, keeps: Sequence[np.ndarray], n: int, rng: np.random.Generator, draws: np.random.Generator
    ) -> sp.csr_matrix:
        """Cells of one condition, ``[n, G of the chunk]``.

        Parameters
        ----------
        source
            What they are made from.
        keeps
            For each of its weights, the share to keep of the difference of every gene.
        n
            How many cells.
        rng
            Draws donors; the same ones for every chunk of genes.
        draws
            Draws the order of equal values.
        """
        if len(source.weights) == 1:
            return sp.csr_matrix(self._kept(source, source.weights[0], keeps[0], n, rng, draws).T.cpu().numpy())
        parts = [self._kept(source, w, k, QUANTILES, rng, draws) for w, k in zip(source.weights, keeps, strict=True)]
        anchor_GQ = self._anchor(source.context, source.context, source.without)
        moved = []
        for i, cells_GN in enumerate(parts):
            for j, other_GN in enumerate(parts):
                if i != j:  # what the other part does to the anchors, it does to the cells of this one
                    draw_GN = self._uniform(cells_GN, draws)
                    cells_GN = move_between(cells_GN, anchor_GQ, other_GN.sort(dim=1).values, draw_GN)
            moved.append(cells_GN)
        everything = torch.ones(anchor_GQ.shape[0], device=self._device)
        result_GN = self._drawn(torch.cat(moved, dim=1), anchor_GQ, everything, n, rng, draws)
        return sp.csr_matrix(result_GN.T.cpu().numpy())

    def _kept(
        self, source: _Source, weight: np.ndarray, keep: np.ndarray, n: int, rng: np.random.Generator,
        draws: np.random.Generator,
    ) -> torch.Tensor:  # fmt: skip
        """Cells of the weighted conditions, moved to the context, of whose difference the noise is taken away."""
        prior, here = self._prior, source.context
        pool = []
        for context, of_context in prior.by_context(weight):
            donors = []
            for i in np.flatnonzero(of_context):
                cells, n_wanted = np.flatnonzero(prior.donor_condition == i), max(1, round(_POOL * of_context[i]))
                own = rng.permutation(cells)[:n_wanted]
                # doses are mixed by their weights, also where one of them has fewer cells
                donors.append(np.resize(own, n_wanted) if source.origin is Origin.NEAREST_DOSES else own)
            cells_GN = self._tensor(self._donors[np.concatenate(donors)].toarray().T)
            if context != here:
                source_GQ = self._anchor(context, here, source.without)
                target_GQ = self._anchor(here, context, source.without)
                cells_GN = move_between(cells_GN, source_GQ, target_GQ, self._uniform(cells_GN, draws))
            pool.append(cells_GN)
        anchor_GQ = self._anchor(here, here, source.without)
        return self._drawn(torch.cat(pool, dim=1), anchor_GQ, self._tensor(keep[self._genes]), n, rng, draws)

    def _drawn(
        self, pool_GM: torch.Tensor, anchor_GQ: torch.Tensor, keep_G: torch.Tensor, n: int, rng: np.random.Generator,
        draws: np.random.Generator,
    ) -> torch.Tensor:  # fmt: skip
        """As many cells of a pool, with the marginals of its mixture with the anchors."""
        chosen = draw_window(np.arange(pool_GM.shape[1]), n, rng)
        cells_GN = pool_GM[:, torch.from_numpy(chosen).to(self._device)]
        return with_marginals(cells_GN, pool_GM, anchor_GQ, keep_G, self._uniform(cells_GN, draws))

    def _anchor(self, context: str, other: str, without: Sequence[str]) -> torch.Tensor:
        """Quantiles of a context's anchors, of the perturbations that it shares with another, except for some."""
        if without != self._without:  # conditions of one perturbation follow each other and share their anchors
            self._anchors, self._without = {}, tuple(without)
        if (context, other) not in self._anchors:
            self._anchors[context, other] = self._anchor_quantiles(context, other, without)
        return self._anchors[context, other]

    def _anchor_quantiles(self, context: str, other: str, without: Sequence[str]) -> torch.Tensor:
        if (context, other) not in self._populations:
            self._populations[context, other] = self._population(context, other)
        population, owner = self._populations[context, other]
        weight = self._prior.anchors(context, other, without=without)
        of_row = np.append(weight, 1 - weight.sum())[owner]  # the last owner are the controls
        n_rows = np.bincount(owner, minlength=len(weight) + 1)[owner]
        return population.quantiles(self._tensor(of_row / n_rows, torch.float64))

    def _population(self, context: str, other: str) -> tuple[Population, np.ndarray]:
        """Cells of all anchors of a context, and which condition each belongs to."""
        prior = self._prior
        control = self._targets[context] if context in self._targets else prior.control_of(context)
        anchors = np.flatnonzero(prior.anchors(context, other, without=()))
        of_each = _ANCHOR_CELLS // max(1, len(anchors))
        rows = [np.flatnonzero(prior.donor_condition == i)[:of_each] for i in anchors]
        chosen = np.concatenate([np.empty(0, dtype=np.int64), *rows])
        cells = np.concatenate([self._donors[chosen].toarray(), control.quantiles_QG[:, self._genes]])
        owner = np.concatenate(
            [prior.donor_condition[chosen], np.full(len(control.quantiles_QG), len(prior.conditions))]
        )
        return Population.of(self._tensor(cells.T)), owner

    def _tensor(self, values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, dtype)

    def _uniform(self, like_GN: torch.Tensor, draws: np.random.Generator) -> torch.Tensor:
        return self._tensor(draws.random(like_GN.shape, dtype=np.float32))


def _moments(block: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each gene: float32 ``[G]`` each."""
    mean = np.asarray(block.mean(0), dtype=np.float64).ravel()
    squares = block.multiply(block) if sp.issparse(block) else np.square(block, dtype=np.float64)
    variance = np.asarray(squares.mean(0), dtype=np.float64).ravel() - np.square(mean)
    return mean.astype(np.float32), np.maximum(variance, 0).astype(np.float32)


def _quantiles(cells: np.ndarray) -> np.ndarray:
    """Values of each gene at evenly spaced quantiles, ``[Q, G]``; values of cells, never between two."""
    ordered = np.sort(cells, axis=0)
    return ordered[((np.arange(QUANTILES) + 0.5) / QUANTILES * len(ordered)).astype(np.int64)]


def _log_dose(part: Component) -> float:
    return float(np.log(part.dose)) if part.dose is not None else float("nan")


def _weighted(weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``weight @ rows`` without the rows of weight 0, which are most of them."""
    used = np.flatnonzero(weight)
    return weight[used] @ rows[used]


def _normalised(chosen: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weights of the chosen ones, the heaviest few of them, adding up to 1."""
    weighted = np.where(chosen, weight, 0).astype(np.float64)
    weighted[np.argsort(-weighted, kind="stable")[_MAX_SOURCES:]] = 0
    return weighted / weighted.sum()


def _nearest(
    perturbation: str, known: Sequence[str], table: EmbeddingTable, allowed: np.ndarray, n_nearest: int = 5
) -> np.ndarray:
    """Softmax of the cosine over the nearest perturbations, spread evenly over their conditions."""
    rows = table.matrix if table.composition is None else table.composition.without_numbers(table.matrix)
    matrix = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    target = matrix[table.row(perturbation)]
    names = sorted({name for name, ok in zip(known, allowed, strict=True) if ok and name in table.row_of})
    cosine = np.array([matrix[table.row(n)] @ target for n in names])
    # all that are as near as the last of them: the first names of many equals would be an arbitrary choice
    best = np.flatnonzero(cosine >= np.sort(cosine)[-n_nearest:][0])
    share = np.exp(10 * (cosine[best] - cosine[best].max()))
    by_name = {names[i]: s for i, s in zip(best, share, strict=True)}
    conditions_of = Counter(known)
    weight = np.array([by_name.get(n, 0.0) / conditions_of[n] for n in known])
    return _normalised(allowed, weight)
