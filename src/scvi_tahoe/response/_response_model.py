"""The response model: mean change of conditions by kernels, simple arithmetic and what folds say of both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from scipy.spatial.distance import cdist
from tqdm.auto import tqdm

from scvi_tahoe.evaluate import SeenChanges
from scvi_tahoe.response._calibration import chosen_size, chosen_spread, inflation_of, shaped_variance
from scvi_tahoe.response._inducing import choose_inducing
from scvi_tahoe.response._kernels import ConditionKernels, Conditions
from scvi_tahoe.response._members import MEMBERS, Members, Origin, Question, Stack, fit_stack
from scvi_tahoe.response._own_gene import OwnGene, target_genes, without_targets
from scvi_tahoe.response._regression import LeftOut, Weights, learn_weights, solve
from scvi_tahoe.response._silent import noise_of_regression, silent_contexts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.data import LabelParser
    from scvi_tahoe.response._kernels import TableKernel
    from scvi_tahoe.response._regression import Regression

Criterion = Literal["error", "discrimination"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
Way = Literal["condition", "label", "perturbation", "context"]

_COMPONENTS = 128
_CHOSEN = (250, 600)  # conditions that weights of kernels are fitted to, first and then refined
_REFINED = (900, 3000)  # conditions that refine weights in the end, and conditions up to which that is done
_FOLDED, _N_FOLDS = 150, 4  # conditions up to which weights of each fold are learned from the other folds
_STACKED = 400  # conditions of each way that members are stacked by
_EXACT, _INDUCING = 12_000, 2_000  # conditions up to which the regression is exact, and those that compare the others
_FEWEST_OWN = 4
_FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)  # of what is specific to a perturbation, to tell them apart
_GAINED = 0.75  # share of the gain in discrimination that the factor has to reach
_FEWEST_JUDGED = 6  # conditions that such a factor is chosen on


@dataclass(frozen=True)
class Responses:
    """Changes of conditions.

    Attributes
    ----------
    perturbations, contexts
        Labels, ``[n]``.
    changes
        Mean change against the context's controls, ``[n, G]``; NaN where it was not measured.
    noise
        Their sampling variance, ``[n, G]``; zeros where it is not known.
    genes
        Names, ``[G]``.
    control_means
        Mean control expression of contexts, ``[G]`` each; may be empty.
    """

    perturbations: np.ndarray
    contexts: np.ndarray
    changes: np.ndarray
    noise: np.ndarray
    genes: np.ndarray
    control_means: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """What a fit of :class:`Kernel` regression, members and calibration leaves."""

    responses: Responses  # NaN filled in, targets' own changes kept out
    parser: LabelParser
    conditions: Conditions
    kernels: ConditionKernels
    members: Members
    regression: Regression
    left_out: Mapping[str, LeftOut]
    stacks: Mapping[tuple[Origin, bool], Stack]
    own: OwnGene | None
    inflation: Mapping[tuple[Origin, bool], float]
    excess_G: np.ndarray
    device: torch.device
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    #: factor of the difference from the mean of the context, for each kind of question; 1 where there is none
    unshrinking: Mapping[tuple[Origin, bool], float] = field(default_factory=dict)
    #: share of the squared change that variances of genes have in addition: strong changes are wrong by more
    spread: Mapping[tuple[Origin, bool], float] = field(default_factory=dict)
    #: share of the squared change, mean over genes, that the variance of a condition has in addition
    sized: Mapping[tuple[Origin, bool], float] = field(default_factory=dict)
    #: contexts that show nothing: they have no say elsewhere, and their own mean is what is predicted there
    silent: frozenset[str] = frozenset()


def fit_responses(
    responses: Responses,
    parser: LabelParser,
    tables: Mapping[str, TableKernel],
    *,
    criterion: Criterion = "error",
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
    like: Fitted | None = None,
    exact_up_to: int = _EXACT,
) -> Fitted:
    """Fit the response model to conditions.

    With more conditions than ``exact_up_to``, a subset of them compares the others. ``like`` is a fit to most of them,
    of which stacks and calibration are kept, so that only coefficients are solved for, and of few conditions the
    weights of kernels.
    """
    device = torch.device(device)
    conditions = Conditions.of(responses.perturbations, responses.contexts, parser)
    kernels = ConditionKernels.of(conditions, parser, tables, responses.control_means)
    targets = target_genes(responses.perturbations.tolist(), responses.genes.tolist(), parser)
    # single precision, as it is saved, so that a saved model predicts the same to the last bit
    filled = filled_changes(responses.changes, responses.contexts).astype(np.float32)
    noise = np.nan_to_num(responses.noise).astype(np.float32)
    own = _fit_own(responses, filled, targets)
    masked = filled if own is None else without_targets(filled, responses.contexts, targets)
    silent, believed = silent_contexts(masked, noise, conditions), noise_of_regression(masked, noise, conditions)
    seen = SeenChanges(responses.perturbations, responses.contexts, masked, silent)
    members = Members(seen, noise, parser, kernels.tables)
    rng = np.random.default_rng(seed)
    blocks = {way: of_way for way, of_way in left_out_blocks(conditions, members).items() if of_way}
    bar = tqdm(desc="response model", delay=3, disable=not progress, unit="group")

    def learn(
        rows: np.ndarray | None, chosen: Sequence[np.ndarray], *, pooled: bool = False, after: Weights | None = None
    ) -> Weights:
        some = conditions if rows is None else conditions.take(rows, parser)
        y, v = (masked, believed) if rows is None else (masked[rows], believed[rows])
        return learn_weights(
            kernels, some, y, v, n_components=_COMPONENTS, chosen=chosen, seed=seed, tick=bar.update, pooled=pooled,
            after=after,
        )  # fmt: skip

    def solved(learned: Weights, of_ways: Mapping[str, Any]) -> tuple[Regression, dict[str, LeftOut]]:
        return solve(
            learned, kernels, conditions, masked, believed, blocks=of_ways, device=device, tick=bar.update,
            inducing=inducing,
        )  # fmt: skip

    n = len(conditions)
    inducing = choose_inducing(conditions, min(_INDUCING, n), rng) if n > exact_up_to else None
    # in one context, only what combinations have in common tells effects from what is a condition's own
    pooled = not kernels.has_contexts and not kernels.tables
    if like is not None and like.kernels.names == kernels.names:
        few = learn(None, [np.arange(n)], pooled=pooled) if n <= _FOLDED else None
        regression, left_out = solved(few or like.regression.learned, blocks)
        bar.close()
        return replace(
            like, responses=replace(responses, changes=filled, noise=noise), conditions=conditions, kernels=kernels,
            members=members, regression=regression, left_out=left_out, own=own, silent=silent,
        )  # fmt: skip
    if n <= _FOLDED:
        # with few conditions, weights of many components fit the noise of the very conditions that are left out
        folds = {way: _folds(of_way, rng) for way, of_way in blocks.items() if way != "context"}
        left_out = {}
        for way, of_way in folds.items():
            parts = []
            for fold in of_way:
                rows = np.setdiff1d(np.arange(n), np.concatenate([r[wanted] for r, wanted in fold]))
                parts.append(solved(learn(rows, [np.arange(len(rows))], pooled=pooled), {way: fold})[1][way])
            left_out[way] = LeftOut.joined(parts)
        # what contexts share can hardly be learned without one of them
        context = {way: of_way for way, of_way in blocks.items() if way == "context"}
        regression, of_context = solved(learn(None, [np.arange(n)], pooled=pooled), context)
        left_out |= of_context
        judged = np.arange(n)
    else:
        chosen = [some_conditions(conditions, min(size, int(0.6 * n)), rng) for size in _CHOSEN]
        learned = learn(None, chosen if len(chosen[0]) < len(chosen[1]) else chosen[:1])
        regression, left_out = solved(learned, blocks)
        judged = np.setdiff1d(np.arange(n), chosen[-1])
    fitted = Fitted(
        responses=replace(responses, changes=filled, noise=noise), parser=parser, conditions=conditions,
        kernels=kernels, members=members, regression=regression, left_out=left_out, stacks={}, own=own, inflation={},
        excess_G=np.zeros(filled.shape[1]), device=device, silent=silent,
    )  # fmt: skip
    judged = judged[~np.isin(conditions.contexts[judged], sorted(silent))]
    fitted = _stacked(fitted, judged, rng, criterion, np.isnan(responses.changes))
    if n > _FOLDED and n <= _REFINED[1]:
        # members are stacked by conditions that weights were not fitted to; now these may refine them
        learned = learn(None, [some_conditions(conditions, _REFINED[0], rng)], after=learned)
        regression, left_out = solved(learned, blocks)
        fitted = replace(fitted, regression=regression, left_out=left_out)
    bar.close()
    return fitted


def filled_changes(changes: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Fill in the mean of the context, or else of all conditions, where changes are missing."""
    missing = np.isnan(changes)
    if not missing.any():
        return changes.astype(np.float64)
    result = changes.astype(np.float64)
    with np.errstate(invalid="ignore"):
        overall = np.nan_to_num(_nanmean(result))
        for context in np.unique(contexts).tolist():
            here = contexts == context
            mean = _nanmean(result[here])
            mean = np.where(np.isnan(mean), overall, mean)
            result[here] = np.where(missing[here], mean, result[here])
    return result


def _nanmean(values: np.ndarray) -> np.ndarray:
    n = (~np.isnan(values)).sum(axis=0)
    return np.where(n > 0, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)


def _fit_own(responses: Responses, changes: np.ndarray, targets: Sequence[Sequence[int]]) -> OwnGene | None:
    rows = [i for i, of_label in enumerate(targets) if len(of_label) == 1]
    means = responses.control_means
    rows = [i for i in rows if not means or responses.contexts[i] in means]
    if len({responses.perturbations[i] for i in rows}) < _FEWEST_OWN:
        return None
    genes = [targets[i][0] for i in rows]
    contexts = responses.contexts[rows].tolist()
    expression = np.array([means[c][g] if means else np.nan for c, g in zip(contexts, genes, strict=True)])
    names = [str(responses.genes[g]) for g in genes]
    return OwnGene.fit(names, contexts, expression.astype(np.float64), changes[rows, genes])


def left_out_blocks(conditions: Conditions, members: Members) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Ways to leave out: conditions left out together, and which of them are predicted so."""
    every = np.arange(len(conditions))
    blocks = {"condition": [(np.array([i]), np.array([True])) for i in every if len(every) > 1]}
    by_label = [np.flatnonzero(conditions.label == k) for k in range(len(conditions.labels))]
    position = {label: k for k, label in enumerate(conditions.labels)}
    blocks["perturbation"] = []
    for k, label in enumerate(conditions.labels):
        sharing = sorted(members.labels_sharing(label) & position.keys())  # members may know further conditions
        rows = np.concatenate([by_label[position[other]] for other in sharing])
        if len(rows) < len(conditions):
            blocks["perturbation"].append((rows, conditions.label[rows] == k))
    if any(len(members.labels_sharing(label) & position.keys()) > 1 for label in conditions.labels):
        blocks["label"] = [(rows, np.ones(len(rows), bool)) for rows in by_label if len(rows) < len(conditions)]
    if len(conditions.context_names) > 1:
        found = [np.flatnonzero(conditions.context == k) for k in range(len(conditions.context_names))]
        blocks["context"] = [(rows, np.ones(len(rows), bool)) for rows in found]
    return {way: of_way for way, of_way in blocks.items() if of_way}


def _folds(
    blocks: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Deal the blocks out to folds."""
    n = min(_N_FOLDS, len(blocks))
    fold = rng.permutation(np.arange(len(blocks)) % n)
    return [[block for block, f in zip(blocks, fold, strict=True) if f == k] for k in range(n)]


def some_conditions(conditions: Conditions, n: int, rng: np.random.Generator) -> np.ndarray:
    """All conditions of random labels until there are ``n``."""
    if len(conditions) <= n:
        return np.arange(len(conditions))
    order = rng.permutation(len(conditions.labels))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.sort(np.argsort(rank[conditions.label], kind="stable")[:n])


def _question(fitted: Fitted, i: int, way: str) -> Question:
    """Ask for a training condition as if it, its label, its perturbation or its context were not known."""
    c = fitted.conditions
    label, context = str(c.perturbations[i]), str(c.contexts[i])
    if way == "perturbation":
        return Question(label, context, fitted.members.labels_sharing(label))
    if way == "label":
        return Question(label, context, frozenset({label}))
    return Question(label, context, hides_context=way == "context")


def _stacked(
    fitted: Fitted, judged: np.ndarray, rng: np.random.Generator, criterion: Criterion, missing: np.ndarray
) -> Fitted:
    """Fit the stacks, and scale variances by conditions that were left out."""
    y, noise = fitted.members.seen.changes, fitted.members.noise
    asked: dict[tuple[Origin, bool], list[tuple[int, str, Question]]] = {}
    for way, left_out in fitted.left_out.items():
        for i in rng.permutation(np.intersect1d(left_out.rows, judged))[:_STACKED]:
            question = _question(fitted, int(i), way)
            origin = fitted.members.origin(question)
            if way == "label" and origin in (Origin.NEAREST, Origin.OTHERS):
                continue  # asked by way of the perturbation
            asked.setdefault((origin, way == "context"), []).append((int(i), way, question))
    # the same question by two ways (a condition whose perturbation is nowhere else) counts once
    for key, questions in asked.items():
        asked[key] = list({(i, q.without, q.hides_context): (i, way, q) for i, way, q in questions}.values())
    stacks, inflation, unshrinking, spread, sized, residuals = {}, {}, {}, {}, {}, []
    scores: dict[str, dict[str, dict[str, float]]] = {}
    of_condition = noise.mean(axis=1)
    usual = np.median(of_condition[of_condition > 0]) if noise.any() else 1.0
    for key, questions in asked.items():
        rows = np.array([i for i, _, _ in questions])
        kernels, of_kernels = np.empty((len(rows), y.shape[1])), np.empty((len(rows), y.shape[1]))
        for way in {way for _, way, _ in questions}:
            mine = np.array([k for k, (_, other, _) in enumerate(questions) if other == way])
            kernels[mine], of_kernels[mine] = fitted.left_out[way].changes(rows[mine])
        predicted = [
            {"kernels": k} | fitted.members.changes(q, key[0]) for k, (_, _, q) in zip(kernels, questions, strict=True)
        ]
        noises = [
            fitted.members.noise_of(q, key[0]) if "deviation" in p else None
            for p, (_, _, q) in zip(predicted, questions, strict=True)
        ]
        weight = 1 / (noise[rows].mean(axis=1) + usual)
        stacks[key] = fit_stack(
            predicted, noises, [y[i] for i in rows], weight / weight.max(), fitted.conditions.perturbations[rows]
        )
        found = np.stack([stacks[key].apply(p, s) for p, s in zip(predicted, noises, strict=True)])
        contexts = fitted.conditions.contexts[rows]
        scores[question_name(key)] = _scores(predicted, found, y[rows], contexts)
        if criterion == "discrimination":
            mean = np.stack([p["mean"] for p in predicted])
            factor = unshrinking[key] = _discriminating(found, mean, y[rows], contexts)
            found = mean + factor * (found - mean)
            scores[question_name(key)][f"response model x {factor:g}"] = change_scores(found, y[rows], contexts)
        residuals.append((key, np.where(missing[rows], np.nan, y[rows] - found), found, noise[rows], of_kernels))
    if not residuals:  # a single condition: nothing is left out
        return replace(fitted, excess_G=np.square(y).mean(axis=0))
    # what is outside the basis, or what kernels do not know of: one value a gene, over all questions
    squares = np.concatenate([np.square(r) - n - v for _, r, _, n, v in residuals])
    excess = np.maximum(np.nan_to_num(_nanmean(squares)), 0)
    for key, residual, found, own_noise, variance in residuals:
        given = np.square(residual), variance + excess, np.square(found), own_noise
        spread[key], sized[key] = chosen_spread(*given), chosen_size(*given)
        total = shaped_variance(variance + excess, np.square(found), spread[key], sized[key])
        inflation[key] = inflation_of(np.square(residual), total, own_noise)
    return replace(
        fitted, stacks=stacks, inflation=inflation, excess_G=excess, scores=scores, unshrinking=unshrinking,
        spread=spread, sized=sized,
    )  # fmt: skip


def _discriminating(found: np.ndarray, mean: np.ndarray, truth: np.ndarray, contexts: np.ndarray) -> float:
    """Choose the smallest factor of the difference from the mean that tells left-out conditions apart almost best."""
    pds = [change_scores(mean + f * (found - mean), truth, contexts)["pds"] for f in _FACTORS]
    if len(found) < _FEWEST_JUDGED or not np.isfinite(pds).all():
        return 1.0
    return _FACTORS[int(np.argmax(np.array(pds) >= pds[0] + _GAINED * (max(pds) - pds[0])))]


def reject_unknown_criterion(criterion: str) -> None:
    """Raise a ValueError for a criterion that is not known."""
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r} is unknown; allowed are {' and '.join(map(repr, CRITERIA))}.")


def question_name(key: tuple[Origin, bool]) -> str:
    """Name a kind of question."""
    origin, hides_context = key
    return origin.value + (", in a context with controls only" if hides_context else "")


def _scores(
    predicted: Sequence[Mapping[str, np.ndarray]], stacked: np.ndarray, truth: np.ndarray, contexts: np.ndarray
) -> dict[str, Any]:
    """Mean absolute and root mean squared error, Pearson and PDS of every member and of the stack."""
    rows: dict[str, np.ndarray] = {"response model": stacked}
    for name in MEMBERS:
        if any(name in p for p in predicted):
            rows[name] = np.stack([p.get(name, p["kernels"]) for p in predicted])
    return {name: change_scores(values, truth, contexts) for name, values in rows.items()}


def change_scores(predicted: np.ndarray, truth: np.ndarray, contexts: np.ndarray) -> dict[str, float]:
    """Scores of changes ``[n, G]``: Pearson, PDS (against the others of the context), MAE and RMSE."""

    def centred(values: np.ndarray) -> np.ndarray:
        values = values - values.mean(axis=1, keepdims=True)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)

    ranks = []
    for context in np.unique(contexts).tolist():
        here = np.flatnonzero(contexts == context)[:300]
        if len(here) > 1:
            distance = cdist(predicted[here], truth[here], "cityblock")
            ranks.append(1 - (distance < distance.diagonal()[:, None]).mean(axis=1))
    return {
        "pearson": float((centred(predicted) * centred(truth)).sum(axis=1).mean()),
        "pds": float(np.concatenate(ranks).mean()) if ranks else float("nan"),
        "mae": float(np.abs(predicted - truth).mean()),
        "rmse": float(np.sqrt(np.square(predicted - truth).mean())),
        "n": len(predicted),
    }


def knows_own_genes(fitted: Fitted, context: str, control_means: Mapping[str, np.ndarray]) -> bool:
    """Whether the change of a perturbed gene can be read off its line; without any control expression it is level."""
    return context in control_means or not (control_means or fitted.responses.control_means)


def with_contexts(kernels: ConditionKernels, control_means: Mapping[str, np.ndarray]) -> ConditionKernels:
    """Add contexts by their controls, where kernels compare these."""
    known = {c: m for c, m in control_means.items() if c not in kernels.control_profiles}
    if not kernels.control_profiles or not known:
        return kernels
    return replace(kernels, control_profiles={**kernels.control_profiles, **known})


def _own_elsewhere(fitted: Fitted, questions: Sequence[Question]) -> np.ndarray:
    """Return what is a condition's own, for the same perturbation elsewhere, if none recurs in training: ``[n, Q]``.

    No data tell then whether it is the perturbation's or the condition's; it is taken as the perturbation's, with known
    noise removed, so that a screen of one context predicts another one by its changes and not by their mean.
    """
    regression, seen = fitted.regression, fitted.members.seen
    result = np.zeros((len(questions), len(regression.size_Q)))
    if fitted.kernels.recurs:
        return result
    own_nQ = regression.coefficients_nQ * (regression.nugget_Q / regression.size_Q)
    for i, q in enumerate(questions):
        rows = seen.elsewhere(q.perturbation, q.context)
        if len(rows) and q.perturbation not in q.without:
            result[i] = own_nQ[rows].mean(axis=0)
    return result


def predicted_changes(
    fitted: Fitted,
    questions: Sequence[Question],
    control_means: Mapping[str, np.ndarray],
    *,
    kernels_nG: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Origin]]:
    """Predict changes of conditions, ``[n, G]``, and say what kind of question each was.

    ``kernels_nG`` replaces what the kernels say, where a training condition is asked for without itself.
    """
    basis = fitted.regression.basis_QG
    if kernels_nG is None:
        rows = Conditions.of([q.perturbation for q in questions], [q.context for q in questions], fitted.parser)
        kernels = with_contexts(fitted.kernels, control_means)
        kernels_nG = fitted.regression.predict(kernels, rows, fitted.conditions, fitted.device) @ basis
        kernels_nG += _own_elsewhere(fitted, questions) @ basis
    trained = set(fitted.conditions.context_names)
    targets = target_genes([q.perturbation for q in questions], fitted.responses.genes.tolist(), fitted.parser)
    result, origins = np.empty((len(questions), basis.shape[1]), dtype=np.float32), []
    for i, question in enumerate(questions):
        question = replace(question, hides_context=question.hides_context or question.context not in trained)
        origin = fitted.members.origin(question)
        stack = fitted.stacks.get((origin, question.hides_context)) or fitted.stacks.get((origin, False))
        stack = stack or Stack.default()
        is_silent = question.context in fitted.silent
        changes = {"kernels": kernels_nG[i]}
        if is_silent or stack.weights[0] < 1 or stack.unshrunk.any() or fitted.unshrinking:
            changes |= fitted.members.changes(question, origin)
        noise = fitted.members.noise_of(question, origin) if "deviation" in changes else None
        change, factor = stack.apply(changes, noise), fitted.unshrinking.get((origin, question.hides_context), 1.0)
        if factor != 1:
            change = changes["mean"] + factor * (change - changes["mean"])
        result[i] = changes["mean"] if is_silent else change
        if fitted.own is not None and knows_own_genes(fitted, question.context, control_means):
            for gene in targets[i]:
                expression = float(control_means[question.context][gene]) if control_means else np.nan
                knows = origin is not Origin.OTHERS and not question.without
                result[i, gene] = fitted.own.predict(
                    str(fitted.responses.genes[gene]), question.context, expression, knows_elsewhere=knows
                )
        origins.append(origin)
    return result, origins


def left_out_changes(fitted: Fitted, way: str, control_means: Mapping[str, np.ndarray]) -> np.ndarray:
    """Predict the changes of training conditions from others, float32 ``[n, G]``.

    Parameters
    ----------
    fitted
        Response model.
    way
        What is left out: the condition, or its perturbation in any context.
    control_means
        Mean control expression of contexts.
    """
    result = np.empty(fitted.responses.changes.shape, dtype=np.float32)
    left_out = fitted.left_out[way]
    for start in range(0, len(result), 256):
        rows = np.arange(start, min(start + 256, len(result)))
        kernels, _ = left_out.changes(rows)
        questions = [_question(fitted, int(i), way) for i in rows]
        result[rows], _ = predicted_changes(fitted, questions, control_means, kernels_nG=kernels)
    return result
