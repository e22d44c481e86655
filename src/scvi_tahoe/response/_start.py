"""What a network's change is added to with ``prior="response"``: control cells moved to the response model's means."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scvi_tahoe._constants import STREAMS
from scvi_tahoe._threads import solving_threads
from scvi_tahoe.data import ControlProfile, StartTable, moved_to_mean
from scvi_tahoe.response._judged import question_name
from scvi_tahoe.response._kernels import Conditions, TableKernel
from scvi_tahoe.response._members import Origin, Question
from scvi_tahoe.response._plan_next import plan_next
from scvi_tahoe.response._response_model import Criterion, fit_responses, left_out_changes, predicted_changes
from scvi_tahoe.response._responses import Responses
from scvi_tahoe.response._saved import fitted_from_plain, plain_of_fitted, wrong_plain
from scvi_tahoe.response._statistics import condition_statistics
from scvi_tahoe.response._uncertainty import predicted_sd, variance_and_support

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi_tahoe.data import CellStore, Condition, ConditionIndex, ConditionRequest, EmbeddingTable, LabelParser
    from scvi_tahoe.response._fitted import Fitted

Way = Literal["condition", "perturbation"]
_FEW = 0.5  # of the perturbations that contexts have in the median


def tables_of(table: EmbeddingTable) -> dict[str, pd.DataFrame]:
    """Embedding tables that a model's rows are made of, index = name; none where rows are one-hot."""
    table = table.components
    if table.one_hot:
        return {}
    if table.fusion is None:
        return {"table": pd.DataFrame(table.matrix, index=list(table.names))}
    found, start = {}, 0
    for k, center in enumerate(table.fusion.centers):
        stop = start + len(center)
        known = table.matrix[:, stop] == 0  # behind each table is a mark of missing labels
        names = np.array(table.names)[known]
        found[f"table {k + 1}"] = pd.DataFrame(table.matrix[known, start:stop], index=names.tolist())
        start = stop + 1
    return found


@dataclass(frozen=True)
class ResponseStart:
    """The response model of a screen, and what its training conditions start from.

    Attributes
    ----------
    fitted
        The response model.
    starts_nG
        Changes of training conditions as others predict them, float32.
    usual_G
        Mean of the non-zero values of each gene.
    control_means
        Mean control expression of training contexts.
    variance_n
        Variance of these changes, summed over components; None in models of earlier versions.
    judged
        Kinds of question (:meth:`kinds`) of the conditions for which the network was judged to hold; empty if it was
        judged to hold nowhere. If None, it was not judged.
    """

    fitted: Fitted
    starts_nG: np.ndarray
    usual_G: np.ndarray
    control_means: Mapping[str, np.ndarray]
    variance_n: np.ndarray | None = None
    judged: frozenset[str] | None = None
    kind: str = field(default="response", init=False)

    @classmethod
    def from_cells(  # noqa: PLR0913
        cls,
        expression: Any,
        index: ConditionIndex,
        rows: np.ndarray,
        table: EmbeddingTable,
        parser: LabelParser,
        genes: np.ndarray,
        *,
        way: Way = "condition",
        device: torch.device,
        seed: int,
        progress: bool,
        like: ResponseStart | None = None,
        criterion: Criterion = "error",
        sources: Mapping[str, str] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> ResponseStart:
        """Fit the response model to the training cells of a screen.

        Parameters
        ----------
        expression
            Cells x genes of the whole screen.
        index
            Its conditions.
        rows
            Training cells; no other perturbed cell is looked at.
        table
            Perturbation embeddings.
        parser
            Reads labels.
        genes
            Names of the genes.
        way
            What training conditions do not know of themselves: the condition, or the perturbation in any context.
        device
            Where matrices are inverted.
        seed
            Random seed of folds and subsets.
        progress
            Whether to show a bar if it takes more than some seconds.
        criterion
            Whether squared errors are to be small, or perturbations told apart.
        like
            Start of most of these cells, which training conditions keep: only others are fitted anew.
        sources, weights
            Data set and weight of contexts. Below 1, so much noise is added that it leaves this share of the variance.
        """
        statistics = condition_statistics(expression, index, rows)
        means = {c: _mean_of(expression, index.controls(c)) for c in index.contexts if len(index.controls(c))}
        labels = [parser.spelling(c.perturbation) for c in statistics.conditions]
        contexts = [c.context for c in statistics.conditions]
        changes = statistics.means - np.stack([means[c] for c in contexts])
        noise = statistics.noise + _noise_of_weights(changes, np.array(contexts), weights or {})
        responses = Responses(np.array(labels), np.array(contexts), changes, noise, genes, means, sources or {})
        components = Conditions.of(labels, contexts, parser).components
        tables = {name: TableKernel.of(rows, components) for name, rows in tables_of(table).items()}
        before = None if like is None else like.fitted
        with solving_threads(*changes.shape):
            fitted = fit_responses(
                responses, parser, tables, criterion=criterion, device=device, seed=seed, progress=progress, like=before
            )
        starts = left_out_changes(fitted, way, means)
        variance = np.nansum(fitted.left_out[way].variance_nQ, axis=1)  # folds have components of their own
        if like is not None:
            known = {condition: i for i, condition in enumerate(like.conditions)}
            for i, condition in enumerate(zip(contexts, labels, strict=True)):
                if condition in known:
                    starts[i] = like.starts_nG[known[condition]]
                    variance[i] = variance[i] if like.variance_n is None else like.variance_n[known[condition]]
        return cls(fitted, starts, statistics.usual_G.astype(np.float32), means, variance)

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """Context and perturbation of the training conditions."""
        c = self.fitted.conditions
        return tuple(zip(c.contexts.tolist(), c.perturbations.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values and arrays, for saving."""
        arrays, settings = plain_of_fitted(self.fitted)
        names = list(self.control_means)
        return {
            "kind": "response",
            "judged": None if self.judged is None else sorted(self.judged),
            "conditions": list(self.conditions),
            "contexts": tuple(names),
            "settings": settings,
            "arrays": arrays
            | {
                "starts": self.starts_nG,
                "usual": self.usual_G,
                "control_means": np.stack([self.control_means[c] for c in names]),
            }
            | ({} if self.variance_n is None else {"starts_variance": self.variance_n}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResponseStart:
        """Return the start of :meth:`to_dict`."""
        arrays = values["arrays"]
        means = dict(zip(values["contexts"], arrays["control_means"], strict=True))
        fitted = fitted_from_plain(arrays, values["settings"], values["conditions"], means)
        judged, variance = _frozen(values.get("judged")), arrays.get("starts_variance")
        return cls(fitted, arrays["starts"], arrays["usual"], means, variance, judged)

    @staticmethod
    def wrong(values: Mapping[str, Any], n_genes: int) -> str:
        """Say what is wrong with plain values of a file; an empty text if nothing is."""
        arrays, n = values["arrays"], len(values["conditions"])
        shapes = {"starts": (n, n_genes), "usual": (n_genes,), "control_means": (len(values["contexts"]), n_genes)}
        for name, shape in shapes.items():
            if name not in arrays or arrays[name].shape != shape:
                return f"{name} does not have the shape {shape}"
        if "starts_variance" in arrays and arrays["starts_variance"].shape != (n,):
            return f"starts_variance does not have the shape {(n,)}"
        means = dict(zip(values["contexts"], arrays["control_means"], strict=True))
        return wrong_plain(arrays, values["settings"], values["conditions"], means, n_genes)

    def targets(self, controls: Iterable[tuple[str, np.ndarray]]) -> dict[str, ControlProfile]:
        """Measure the control cells of contexts, dense, one context after the other."""
        return {context: ControlProfile.of(cells, self.usual_G) for context, cells in controls}

    def _with_rows(self, table: EmbeddingTable) -> Fitted:
        """Return the response model with rows that a table has by now."""
        fresh = tables_of(table)
        tables = {n: t.with_rows(fresh[n]) if n in fresh else t for n, t in self.fitted.kernels.tables.items()}
        if all(tables[n] is t for n, t in self.fitted.kernels.tables.items()):
            return self.fitted
        kernels = replace(self.fitted.kernels, tables=tables)
        return replace(self.fitted, kernels=kernels, members=replace(self.fitted.members, tables=tables))

    def changes(
        self, conditions: Sequence[Condition], targets: Mapping[str, ControlProfile], table: EmbeddingTable
    ) -> tuple[np.ndarray, list[Origin]]:
        """Predict changes of conditions from others, float32 ``[conditions, G]``, and say where they come from."""
        fitted, parser = self._with_rows(table), self.fitted.parser
        spelled = [(c.context, parser.spelling(c.perturbation)) for c in conditions]
        known = {condition: i for i, condition in enumerate(self.conditions)}
        means = {c: profile.mean_G for c, profile in targets.items()}
        fresh = [k for k, condition in enumerate(spelled) if condition not in known]
        changes = np.empty((len(conditions), self.starts_nG.shape[1]), dtype=np.float32)
        if fresh:
            questions = [Question(spelled[k][1], spelled[k][0]) for k in fresh]
            changes[fresh], _ = predicted_changes(fitted, questions, means)
        own = [k for k, condition in enumerate(spelled) if condition in known]
        changes[own] = self.starts_nG[[known[spelled[k]] for k in own]]
        return changes, self.starts_from(conditions, table)

    def starts_from(self, conditions: Sequence[Condition], table: EmbeddingTable) -> list[Origin]:
        """Return what conditions start from."""
        members, parser = self._with_rows(table).members, self.fitted.parser
        trained = set(self.fitted.conditions.context_names)
        asked = (
            Question(parser.spelling(c.perturbation), c.context, hides_context=c.context not in trained)
            for c in conditions
        )
        return [members.origin(question) for question in asked]

    def is_corrected(self, conditions: Sequence[Condition], table: EmbeddingTable) -> np.ndarray:
        """Whether what a network learned applies to conditions, bool ``[conditions]``.

        It does to those of a kind by which it was judged. If it was not judged at all, it does not in a context without
        trained perturbations, nor to a combination that was not trained on and starts from its parts, unless at least
        half of the combinations that were trained on did, too: from others it learns what parts do, which such a start
        has already.
        """
        if self.judged is not None:
            return np.array([kind in self.judged for kind in self.kinds(conditions, table)], dtype=bool)
        parser, members = self.fitted.parser, self.fitted.members
        trained = self.fitted.conditions.context_names
        result = np.array([c.context in trained for c in conditions], dtype=bool)
        several = {label for _, label in self.conditions if len(parser.components(label)) > 1}
        origins = [members.origin(Question(label, context)) for context, label in self.conditions if label in several]
        if origins and 2 * sum(origin is Origin.PARTS for origin in origins) >= len(origins):
            return result
        known = set(self.conditions)
        asked = [(c.context, parser.spelling(c.perturbation)) for c in conditions]
        pairs = zip(asked, self.starts_from(conditions, table), strict=True)
        return result & np.array([c in known or origin is not Origin.PARTS for c, origin in pairs], dtype=bool)

    def kinds(self, conditions: Sequence[Condition], table: EmbeddingTable) -> list[str]:
        """Name the kind of question that each condition is: what it starts from, and how much its context is known."""
        counts = Counter(self.fitted.conditions.contexts.tolist())
        few = _FEW * float(np.median(list(counts.values())))
        origins = self.starts_from(conditions, table)
        return [
            question_name((origin, counts[c.context] == 0))
            + (", in a context with few perturbations" if 0 < counts[c.context] < few else "")
            for origin, c in zip(origins, conditions, strict=True)
        ]

    def effects(
        self, conditions: Sequence[Condition], targets: Mapping[str, ControlProfile], table: EmbeddingTable
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict changes from other conditions, their standard deviations, and the support of each condition."""
        changes, _ = self.changes(conditions, targets, table)
        fitted, parser = self._with_rows(table), self.fitted.parser
        questions = [Question(parser.spelling(c.perturbation), c.context) for c in conditions]
        means = {c: profile.mean_G for c, profile in targets.items()}
        variance_nQ, support = variance_and_support(fitted, questions, means, self._left_out_variance(questions))
        return changes, predicted_sd(fitted, questions, means, changes, variance_nQ), support

    def _left_out_variance(self, questions: Sequence[Question]) -> np.ndarray:
        """Variance of training conditions as others predict them, summed over components; NaN for other conditions."""
        known = {condition: i for i, condition in enumerate(self.conditions)}
        rows = [known.get((q.context, q.perturbation)) for q in questions]
        variance_n = self.variance_n
        if variance_n is None:
            return np.full(len(rows), np.nan)
        return np.array([np.nan if row is None else variance_n[row] for row in rows])

    def with_measurements(
        self, conditions: Sequence[Condition], changes: np.ndarray, deviation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Combine what others say of training conditions with their own measurement, each weighted by its variance."""
        known = {condition: i for i, condition in enumerate(self.conditions)}
        spelling, changes, deviation = self.fitted.parser.spelling, changes.copy(), deviation.copy()
        for k, condition in enumerate(conditions):
            if (row := known.get((condition.context, spelling(condition.perturbation)))) is not None:
                squared, noise = np.square(deviation[k]), self.fitted.responses.noise[row]
                share = squared / np.maximum(squared + noise, 1e-12)
                changes[k] += share * (self.fitted.responses.changes[row] - changes[k])
                deviation[k] = np.sqrt(share * noise)
        return changes, deviation

    def confidence(
        self, conditions: Sequence[Condition], targets: Mapping[str, ControlProfile], table: EmbeddingTable
    ) -> pd.DataFrame:
        """Say how sure predictions of conditions are: ``support`` and ``expected_error``, one row for each condition.

        The expected error is the mean over genes of the expected absolute error of the change, of log1p expression.
        """
        parts = []
        for start in range(0, len(conditions), 512):
            _, deviation, support = self.effects(conditions[start : start + 512], targets, table)
            error = np.sqrt(2 / np.pi) * deviation.mean(axis=1)
            parts.append(pd.DataFrame({"support": support, "expected_error": error}))
        return pd.concat(parts, ignore_index=True)

    def wanted_means(
        self, conditions: Sequence[Condition], targets: Mapping[str, ControlProfile], table: EmbeddingTable
    ) -> np.ndarray:
        """Mean expression that conditions start from, float32 ``[conditions, G]``."""
        changes, _ = self.changes(conditions, targets, table)
        return np.maximum(changes + np.stack([targets[c.context].mean_G for c in conditions]), 0)

    def planned(
        self,
        conditions: Sequence[Condition],
        targets: Mapping[str, ControlProfile],
        table: EmbeddingTable,
        n: int,
        to_predict: Sequence[Condition] | None = None,
    ) -> tuple[list[Condition], pd.DataFrame]:
        """Choose which of the conditions to measure next, of those without training cells, and say what each tells."""
        known, spelling = set(self.conditions), self.fitted.parser.spelling

        def fresh(asked: Sequence[Condition]) -> dict[tuple[str, str], Condition]:
            labels = ((spelling(c.perturbation), c) for c in asked)
            return {(label, c.context): c for label, c in labels if (c.context, label) not in known}

        candidates, counted = fresh(conditions), None if to_predict is None else list(fresh(to_predict))
        means = {c: profile.mean_G for c, profile in targets.items()}
        chosen = plan_next(self._with_rows(table), list(candidates), n, means, to_predict=counted)
        of_position = list(candidates.values())
        return [of_position[k] for k in chosen.pop("candidate")], chosen

    def start_table(
        self, conditions: Sequence[Condition], targets: Mapping[str, ControlProfile], table: EmbeddingTable
    ) -> StartTable:
        """Return what minibatches make start cells from."""
        position = {context: k for k, context in enumerate(targets)}
        context_C = np.array([position[c.context] for c in conditions])
        return StartTable(self.wanted_means(conditions, targets, table), context_C, list(targets.values()))


@dataclass
class MovedControls:
    """Makes the start cells of conditions of a prediction when they are asked for, each the same whatever else is.

    Attributes
    ----------
    means_CG
        Wanted means of the conditions.
    profiles
        Control cells of each condition's context.
    requests
        Control cells that each condition starts from.
    labels
        Context and perturbation of each, which seed its random numbers.
    cells
        Store of the control cells.
    seed
        Random seed.
    device
        Where cells are made.
    """

    means_CG: np.ndarray
    profiles: Sequence[ControlProfile]
    requests: Sequence[ConditionRequest]
    labels: Sequence[tuple[str, str]]
    cells: CellStore
    seed: int
    device: torch.device

    def of_conditions(self, first: int, stop: int) -> tuple[sp.csr_matrix, int]:
        """Cells of the conditions from ``first`` to before ``stop``: CSR float32 ``[rows, G]``, and the first row."""
        made = [self._of_condition(k) for k in range(first, stop)]
        return sp.vstack(made, format="csr"), sum(len(request.controls) for request in self.requests[:first])

    def _of_condition(self, k: int) -> sp.csr_matrix:
        rows = self.requests[k].controls
        cells = self.cells.dense(self.cells.fetch(rows), self.device).float()
        seed = np.random.SeedSequence(
            (self.seed, STREAMS.PRIOR_CELLS, *(zlib.crc32(x.encode()) for x in self.labels[k]))
        )
        generator = torch.Generator(self.device).manual_seed(int(seed.generate_state(1)[0]))
        want = torch.from_numpy(self.means_CG[k]).to(self.device)
        return sp.csr_matrix(moved_to_mean(cells, want, self.profiles[k], generator).cpu().numpy())


def _frozen(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _noise_of_weights(changes: np.ndarray, contexts: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Variance that leaves of the variance among the perturbations of a context the share of its weight, ``[n, G]``."""
    result = np.zeros_like(changes)
    for context, weight in weights.items():
        here = contexts == context
        if weight < 1 and here.any():
            result[here] = (1 / weight - 1) * changes[here].var(axis=0)
    return result


def _mean_of(expression: Any, rows: np.ndarray) -> np.ndarray:
    total = np.zeros(expression.shape[1])
    for start in range(0, len(rows), 8192):
        total += np.asarray(expression[rows[start : start + 8192]].sum(axis=0), dtype=np.float64).ravel()
    return (total / len(rows)).astype(np.float32)
