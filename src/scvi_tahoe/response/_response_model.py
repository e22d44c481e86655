"""The response model: mean change of conditions by kernels, simple arithmetic and what folds say of both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scvi_tahoe._messages import progress_bar
from scvi_tahoe.evaluate import SeenChanges
from scvi_tahoe.response._basis import BasesOfFolds
from scvi_tahoe.response._context_scale import choose_scale
from scvi_tahoe.response._evidence_head import FEWEST, N_FOLDS, LeftOutQuestions, fit_head
from scvi_tahoe.response._fitted import Fitted
from scvi_tahoe.response._inducing import choose_inducing
from scvi_tahoe.response._judged import Judged, judge
from scvi_tahoe.response._kernels import ConditionKernels, Conditions
from scvi_tahoe.response._leave_out import fold_of_labels, folds_of_blocks, left_out_blocks, some_labels
from scvi_tahoe.response._members import Members, Origin, Question, Stack, fit_stack
from scvi_tahoe.response._own_gene import OwnGene, target_genes, without_targets
from scvi_tahoe.response._regression import LOWEST, LeftOut, Weights, learn_weights, solve
from scvi_tahoe.response._responses import Responses, filled_changes
from scvi_tahoe.response._shape import fit_shares, shaped
from scvi_tahoe.response._silent import noise_of_regression, silent_contexts
from scvi_tahoe.response._useful_tables import useful_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scvi_tahoe.data import LabelParser
    from scvi_tahoe.response._context_scale import ContextScale
    from scvi_tahoe.response._evidence_head import EvidenceHead
    from scvi_tahoe.response._kernels import TableKernel
    from scvi_tahoe.response._regression import Regression

Criterion = Literal["error", "discrimination"]

_COMPONENTS = 128
_CHOSEN = (250, 600)  # conditions that weights of kernels are fitted to, first and then refined
_REFINED = (900, 3000)  # conditions that refine weights in the end, and conditions up to which that is done
_FOLDED = 150  # conditions up to which weights of each fold are learned from the other folds
_STACKED = 400  # conditions of each way that members are stacked by
_EXACT, _INDUCING = 12_000, 2_000  # conditions up to which the regression is exact, and those that compare the others
_FEWEST_OWN = 4
_BASES = 4  # bases of which each is made without some perturbations, to predict these
_NOT_CORRECTED = (Origin.NEAREST_DOSES,)  # kinds of question that no network corrects
_CORRECTED = 2000  # conditions of each way that the network on the evidence is fitted to


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
    kernels = ConditionKernels.of(conditions, parser, tables, responses.control_means, responses.sources)
    targets = target_genes(responses.perturbations.tolist(), responses.genes.tolist(), parser)
    # single precision, as it is saved, so that a saved model predicts the same to the last bit
    filled = filled_changes(responses.changes, responses.contexts).astype(np.float32)
    noise = np.nan_to_num(responses.noise).astype(np.float32)
    own = _fit_own(responses, filled, targets)
    masked = filled if own is None else without_targets(filled, responses.contexts, targets)
    kept = replace(responses, changes=filled, noise=noise)
    scale, factors, masked, noise = _on_scale(kept, masked, like, seed)
    silent, believed = silent_contexts(masked, noise, conditions), noise_of_regression(masked, noise, conditions)
    members = Members(
        SeenChanges(responses.perturbations, responses.contexts, masked, silent), noise, parser, kernels.tables
    )
    rng = np.random.default_rng(seed)
    blocks = {way: of_way for way, of_way in left_out_blocks(conditions, members).items() if of_way}
    bar = progress_bar(desc="response model", delay=3, disable=not progress, unit="group")

    def learn(
        rows: np.ndarray | None, chosen: Sequence[np.ndarray], *, pooled: bool = False, after: Weights | None = None
    ) -> Weights:
        some = conditions if rows is None else conditions.take(rows, parser)
        y, v = (masked, believed) if rows is None else (masked[rows], believed[rows])
        return learn_weights(
            kernels, some, y, v, n_components=_COMPONENTS, chosen=chosen, seed=seed, tick=bar.update, pooled=pooled,
            after=after, used=used,
        )  # fmt: skip

    n = len(conditions)
    inducing = choose_inducing(conditions, min(_INDUCING, n), rng) if n > exact_up_to else None
    bases_n = fold_of_labels(conditions, _BASES, seed)
    folds = BasesOfFolds.of(masked, believed, _COMPONENTS, bases_n) if n > _FOLDED else None

    def solved(learned: Weights, of_ways: Mapping[str, Any]) -> tuple[Regression, dict[str, LeftOut]]:
        return solve(
            learned, kernels, conditions, masked, believed, blocks=of_ways, device=device, tick=bar.update,
            folds=folds, inducing=inducing,
        )  # fmt: skip

    used = _used(kernels, like, conditions, masked, believed, members, device, seed)
    # in one context, only what combinations have in common tells effects from what is a condition's own
    pooled = not kernels.has_contexts and not kernels.tables
    if like is not None and like.kernels.names == kernels.names:
        few = learn(None, [np.arange(n)], pooled=pooled) if n <= _FOLDED else None
        regression, left_out = solved(few or like.regression.learned, blocks)
        bar.close()
        return replace(
            like, responses=kept, conditions=conditions, kernels=kernels,
            members=members, regression=regression, left_out=left_out, own=own, silent=silent, fold_n=None,
        )  # fmt: skip
    if n <= _FOLDED:
        regression, left_out = _solve_by_folds(
            n, blocks, rng, lambda rows, chosen: learn(rows, chosen, pooled=pooled), solved
        )
        judged = np.arange(n)
    else:
        chosen = [some_labels(conditions, min(size, int(0.6 * n)), rng) for size in _CHOSEN]
        learned = learn(None, chosen if len(chosen[0]) < len(chosen[1]) else chosen[:1])
        regression, left_out = solved(learned, blocks)
        judged = np.setdiff1d(np.arange(n), chosen[-1])
    fitted = Fitted(
        responses=kept, parser=parser, conditions=conditions, kernels=kernels, members=members,
        regression=regression, left_out=left_out, stacks={}, own=own, inflation={},
        excess_G=np.zeros(filled.shape[1]), device=device, silent=silent, scale=scale,
    )  # fmt: skip
    judged = judged[~np.isin(conditions.contexts[judged], sorted(silent))]
    fitted, found = _stacked(fitted, judged, rng)
    if n > _FOLDED and n <= _REFINED[1]:
        # members are stacked by conditions that weights were not fitted to; now these may refine them
        learned = learn(None, [some_labels(conditions, _REFINED[0], rng)], after=learned)
        regression, left_out = solved(learned, blocks)
        fitted = replace(fitted, regression=regression, left_out=left_out)
    missing = np.isnan(responses.changes)
    fitted, found = _with_head(fitted, found, missing, seed, bar.update)
    bar.close()
    fitted, found = _shaped(fitted, found, missing) if criterion == "error" else (fitted, found)
    calibrated = judge(
        found, masked, noise, missing, conditions.contexts, factors, discriminates=criterion == "discrimination"
    )
    return replace(fitted, **calibrated)


def _used(
    kernels: ConditionKernels,
    like: Fitted | None,
    conditions: Conditions,
    changes: np.ndarray,
    noise: np.ndarray,
    members: Members,
    device: torch.device,
    seed: int,
) -> np.ndarray | None:
    """Return which kernels may have weight: those of an earlier fit, or those of tables that help some conditions."""
    if like is not None:
        same = like.kernels.names == kernels.names
        return np.any([log[:-1] > LOWEST for log in like.regression.learned.logs], axis=0) if same else None
    rows = some_labels(conditions, _CHOSEN[0], np.random.default_rng(seed))
    return useful_kernels(
        kernels, conditions.take(rows, members.parser), changes[rows], noise[rows], members,
        n_components=_COMPONENTS, device=device, seed=seed,
    )  # fmt: skip


def _solve_by_folds(
    n: int,
    blocks: Mapping[str, Any],
    rng: np.random.Generator,
    learn: Callable[[np.ndarray | None, Sequence[np.ndarray]], Weights],
    solved: Callable[[Weights, Mapping[str, Any]], tuple[Regression, dict[str, LeftOut]]],
) -> tuple[Regression, dict[str, LeftOut]]:
    """Solve with the weights of all conditions, and leave out with those of the other folds.

    With few conditions, weights of many components fit the noise of the very conditions that are left out.
    """
    left_out = {}
    for way in (way for way in blocks if way != "context"):
        parts = []
        for fold in folds_of_blocks(blocks[way], rng):
            rows = np.setdiff1d(np.arange(n), np.concatenate([r[wanted] for r, wanted in fold]))
            parts.append(solved(learn(rows, [np.arange(len(rows))]), {way: fold})[1][way])
        left_out[way] = LeftOut.joined(parts)
    # what contexts share can hardly be learned without one of them
    context = {way: of_way for way, of_way in blocks.items() if way == "context"}
    regression, of_context = solved(learn(None, [np.arange(n)]), context)
    return regression, left_out | of_context


def _on_scale(
    responses: Responses, changes: np.ndarray, like: Fitted | None, seed: int
) -> tuple[ContextScale | None, np.ndarray, np.ndarray, np.ndarray]:
    """Choose the scale on which contexts are compared; with its factors, ones where there is none, and both on it."""
    labels, contexts, means = responses.perturbations, responses.contexts, responses.control_means
    rng = np.random.default_rng([seed, 2])
    scale = choose_scale(changes, labels, contexts, means, rng) if like is None else like.scale
    factors = np.ones((len(labels), 1), np.float32) if scale is None else scale.factors(contexts, means)
    return scale, factors, changes / factors, responses.noise / np.square(factors)


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


def _question(fitted: Fitted, i: int, way: str) -> Question:
    """Ask for a training condition as if it, its label, its perturbation or its context were not known."""
    c = fitted.conditions
    label, context = str(c.perturbations[i]), str(c.contexts[i])
    if way == "perturbation":
        return Question(label, context, fitted.members.labels_sharing(label))
    if way == "label":
        return Question(label, context, frozenset({label}))
    return Question(label, context, hides_context=way == "context")


def _asked(
    fitted: Fitted, some: np.ndarray, rng: np.random.Generator, most: int
) -> dict[tuple[Origin, bool], list[tuple[int, str, Question]]]:
    """Training conditions as they are asked for without themselves, by the kind of question."""
    asked: dict[tuple[Origin, bool], list[tuple[int, str, Question]]] = {}
    for way, left_out in fitted.left_out.items():
        for i in rng.permutation(np.intersect1d(left_out.rows, some))[:most]:
            question = _question(fitted, int(i), way)
            origin = fitted.members.origin(question)
            if way == "label" and origin in (Origin.NEAREST, Origin.OTHERS):
                continue  # asked by way of the perturbation
            asked.setdefault((origin, way == "context"), []).append((int(i), way, question))
    # the same question by two ways (a condition whose perturbation is nowhere else) counts once
    for key, questions in asked.items():
        asked[key] = list({(i, q.without, q.hides_context): (i, way, q) for i, way, q in questions}.values())
    return asked


def _stacked(fitted: Fitted, judged: np.ndarray, rng: np.random.Generator) -> tuple[Fitted, dict[Any, Judged]]:
    """Fit the stacks to conditions that were left out, and return what these predict for them."""
    y, noise = fitted.members.seen.changes, fitted.members.noise
    stacks, found = {}, {}
    weight = _weights(noise)
    for key, questions in _asked(fitted, judged, rng, _STACKED).items():
        rows = np.array([i for i, _, _ in questions])
        kernels, of_kernels = _left_out_kernels(fitted, questions)
        predicted = [
            {"kernels": k} | fitted.members.changes(q, key[0]) for k, (_, _, q) in zip(kernels, questions, strict=True)
        ]
        noises = [
            fitted.members.noise_of(q, key[0]) if "deviation" in p else None
            for p, (_, _, q) in zip(predicted, questions, strict=True)
        ]
        contexts = None if key[1] else fitted.conditions.contexts[rows]
        stacks[key] = fit_stack(predicted, noises, [y[i] for i in rows], weight[rows] / weight[rows].max(), contexts)
        changes = np.stack(
            [stacks[key].apply(p, s, q.context) for p, s, (_, _, q) in zip(predicted, noises, questions, strict=True)]
        )
        found[key] = Judged(questions, predicted, changes, of_kernels)
    return replace(fitted, stacks=stacks), found


def left_out_questions(fitted: Fitted, missing: np.ndarray, seed: int) -> LeftOutQuestions:
    """Return the training conditions as they are predicted without themselves; ``missing`` were not measured."""
    conditions, y = fitted.conditions, fitted.members.seen.changes
    heard = np.flatnonzero(~np.isin(conditions.contexts, sorted(fitted.silent)))
    asked = _asked(fitted, heard, np.random.default_rng([seed, 1]), _CORRECTED)
    # left-out doses are often beyond the others, which an unseen one seldom is
    known = [(key, i) for key, of_key in asked.items() for i in of_key if not key[1] and key[0] not in _NOT_CORRECTED]
    rows, questions = np.array([i for _, (i, _, _) in known]), [question for _, (_, _, question) in known]
    kernels = _left_out_kernels(fitted, [of_one for _, of_one in known])[0].astype(np.float32)
    return LeftOutQuestions(
        questions, [key for key, _ in known], kernels, _stacked_changes(fitted, questions, kernels)[0],
        np.where(missing[rows], np.nan, y[rows]).astype(np.float32), _weights(fitted.members.noise)[rows],
        fold_of_labels(conditions, N_FOLDS, seed)[rows],
    )  # fmt: skip


def _with_head(
    fitted: Fitted, found: dict[Any, Judged], missing: np.ndarray, seed: int, tick: Callable[[], None]
) -> tuple[Fitted, dict[Any, Judged]]:
    """Fit a network that corrects what is predicted, and return the judged conditions as it leaves them."""
    conditions, evidence = fitted.conditions, fitted.evidence
    if len(conditions) < FEWEST or len(conditions.labels) < N_FOLDS:
        return fitted, found
    asked = left_out_questions(fitted, missing, seed)
    head = fit_head(evidence, asked, device=fitted.device, seed=seed, tick=tick)
    if head is None:
        return fitted, found
    fold_n = fold_of_labels(conditions, N_FOLDS, seed)
    for key, judged in found.items():
        if head.is_used(key):
            questions = [question for _, _, question in judged.asked]
            kernels, variance = _left_out_kernels(fitted, judged.asked)
            base = _stacked_changes(fitted, questions, kernels)[0]
            correction = head.corrections(
                evidence, questions, kernels.astype(np.float32), base, device=fitted.device, fold_m=fold_n[judged.rows]
            )
            members = [{**m, "without the network": b} for m, b in zip(judged.members, base, strict=True)]
            found[key] = Judged(judged.asked, members, base + correction, variance)
    return replace(fitted, head=head, fold_n=fold_n), found


def _shaped(fitted: Fitted, found: dict[Any, Judged], missing: np.ndarray) -> tuple[Fitted, dict[Any, Judged]]:
    """Learn which share of predicted changes to keep, and return the judged conditions with these."""
    shares, members = {}, fitted.members
    weight, observed = _weights(members.noise), np.where(missing, np.nan, members.seen.changes)
    for key, judged in found.items():
        rows = judged.rows
        learned = fit_shares(judged.changes, observed[rows], members.scale_G, weight[rows])
        if learned is not None:
            shares[key] = learned
            found[key] = replace(judged, changes=shaped(judged.changes, learned, members.scale_G))
    return replace(fitted, shares=shares), found


def _weights(noise: np.ndarray) -> np.ndarray:
    """Weights of conditions by their sampling variance, ``[n]``."""
    of_condition = noise.mean(axis=1)
    usual = np.median(of_condition[of_condition > 0]) if noise.any() else 1.0
    return 1 / (of_condition + usual)


def _left_out_kernels(fitted: Fitted, asked: Sequence[tuple[int, str, Question]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the kernels for conditions that are left out in some way, ``[m, G]`` each."""
    width = fitted.members.seen.changes.shape[1]
    mean, variance = np.empty((len(asked), width)), np.empty((len(asked), width))
    for way in {way for _, way, _ in asked}:
        mine = np.array([k for k, (_, other, _) in enumerate(asked) if other == way])
        mean[mine], variance[mine] = fitted.left_out[way].changes(np.array([asked[k][0] for k in mine]))
    return mean, variance


def knows_own_genes(fitted: Fitted, context: str, control_means: Mapping[str, np.ndarray]) -> bool:
    """Whether the change of a perturbed gene can be read off its line; without any control expression it is level."""
    return context in control_means or not (control_means or fitted.responses.control_means)


def with_contexts(kernels: ConditionKernels, control_means: Mapping[str, np.ndarray]) -> ConditionKernels:
    """Add contexts by their controls, where kernels compare these."""
    known = {c: m for c, m in control_means.items() if c not in kernels.control_profiles}
    if not kernels.control_profiles or not known:
        return kernels
    return replace(kernels, control_profiles={**kernels.control_profiles, **known})


def _carry_over(fitted: Fitted, questions: Sequence[Question], kernels_nG: np.ndarray) -> None:
    """Add what is a condition's own, for the same perturbation elsewhere, if none recurs in training; in place.

    Nothing shows then how much of a measurement holds elsewhere. What is noise does not: of a sum of squares over genes
    it is known, whereas components of few conditions with many genes are chosen to hold noise, too.
    """
    regression, seen = fitted.regression, fitted.members.seen
    if fitted.kernels.recurs:
        return
    own_nQ = regression.coefficients_nQ * (regression.nugget_Q / regression.size_Q)
    for i, q in enumerate(questions):
        rows = seen.elsewhere(q.perturbation, q.context)
        if len(rows) and q.perturbation not in q.without:
            kernels_nG[i] += own_nQ[rows].mean(axis=0) @ regression.basis_QG
            squares = float(np.square(seen.changes[rows], dtype=np.float64).sum())
            kernels_nG[i] *= max(0.0, 1 - float(fitted.members.noise[rows].sum()) / max(squares, 1e-300))


def predicted_changes(
    fitted: Fitted,
    questions: Sequence[Question],
    control_means: Mapping[str, np.ndarray],
    *,
    kernels_nG: np.ndarray | None = None,
    fold_n: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Origin]]:
    """Predict changes of conditions, ``[n, G]``, and say what kind of question each was.

    ``kernels_nG`` replaces what the kernels say, where a training condition is asked for without itself, and
    ``fold_n`` has the network of each that was fitted without it.
    """
    if kernels_nG is None:
        rows = Conditions.of([q.perturbation for q in questions], [q.context for q in questions], fitted.parser)
        kernels = with_contexts(fitted.kernels, control_means)
        components = fitted.regression.predict(kernels, rows, fitted.conditions, fitted.device)
        kernels_nG = components @ fitted.regression.basis_QG
        _carry_over(fitted, questions, kernels_nG)
    targets = target_genes([q.perturbation for q in questions], fitted.responses.genes.tolist(), fitted.parser)
    result, means, keys = _stacked_changes(fitted, questions, kernels_nG)
    if fitted.head is not None:
        _correct(fitted, fitted.head, questions, kernels_nG, result, keys, fold_n)
    for i, question in enumerate(questions):
        shares = fitted.shares.get(keys[i], fitted.shares.get((keys[i][0], False)))
        if shares is not None and question.context not in fitted.silent:
            result[i] = shaped(result[i], shares, fitted.members.scale_G)
        factor = fitted.unshrinking.get(keys[i], 1.0)
        if factor != 1:
            result[i] = means[i] + factor * (result[i] - means[i])
    result *= fitted.factors([q.context for q in questions], control_means)
    for i, question in enumerate(questions):
        if fitted.own is not None and knows_own_genes(fitted, question.context, control_means):
            for gene in targets[i]:
                expression = float(control_means[question.context][gene]) if control_means else np.nan
                knows = keys[i][0] is not Origin.OTHERS and not question.without
                result[i, gene] = fitted.own.predict(
                    str(fitted.responses.genes[gene]), question.context, expression, knows_elsewhere=knows
                )
    return result, [origin for origin, _ in keys]


def _stacked_changes(
    fitted: Fitted, questions: Sequence[Question], kernels_nG: np.ndarray
) -> tuple[np.ndarray, dict[int, np.ndarray], list[tuple[Origin, bool]]]:
    """Predict changes by the stacks, float32 ``[n, G]``; with the mean where it is wanted, and the kind of question."""
    trained = set(fitted.conditions.context_names)
    result, means, keys = np.empty(kernels_nG.shape, dtype=np.float32), {}, []
    for i, question in enumerate(questions):
        question = replace(question, hides_context=question.hides_context or question.context not in trained)
        origin = fitted.members.origin(question)
        stack = fitted.stacks.get((origin, question.hides_context)) or fitted.stacks.get((origin, False))
        stack = stack or Stack.default()
        is_silent = question.context in fitted.silent
        changes = {"kernels": kernels_nG[i]}
        if is_silent or stack.weights[0] < 1 or stack.unshrunk.any() or stack.reliance or fitted.unshrinking:
            changes |= fitted.members.changes(question, origin)
        noise = fitted.members.noise_of(question, origin) if "deviation" in changes else None
        result[i] = changes["mean"] if is_silent else stack.apply(changes, noise, question.context)
        if fitted.unshrinking:
            means[i] = changes["mean"]
        keys.append((origin, question.hides_context))
    return result, means, keys


def _correct(
    fitted: Fitted,
    head: EvidenceHead,
    questions: Sequence[Question],
    kernels_nG: np.ndarray,
    changes_nG: np.ndarray,
    keys: Sequence[tuple[Origin, bool]],
    fold_n: np.ndarray | None,
) -> None:
    """Add what the network says, where it is used, in place."""
    pairs = zip(questions, keys, strict=True)
    some = np.flatnonzero([head.is_used(key) and q.context not in fitted.silent for q, key in pairs])
    if some.size:
        changes_nG[some] += head.corrections(
            fitted.evidence, [questions[i] for i in some.tolist()], kernels_nG[some].astype(np.float32),
            changes_nG[some], device=fitted.device, fold_m=None if fold_n is None else fold_n[some],
        )  # fmt: skip


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
        fold = None if fitted.fold_n is None else fitted.fold_n[rows]
        result[rows], _ = predicted_changes(fitted, questions, control_means, kernels_nG=kernels, fold_n=fold)
    return result
