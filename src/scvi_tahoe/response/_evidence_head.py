"""One small network, the same for all genes, that reads evidence of a gene in a condition and corrects its change.

It is trained on conditions that were predicted without themselves, with their perturbation known elsewhere or not, and
it is used only for kinds of questions in which it is better for conditions that its weights were not fitted to. A few
hundred conditions are millions of examples for weights that all genes share; how few conditions there are still shows,
so that several networks, each without one fold of perturbations, are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from scvi_tahoe.response._evidence import Evidence
    from scvi_tahoe.response._members import Origin, Question

    Key = tuple[Origin, bool]

N_FOLDS = 3
FEWEST = 300  # conditions from which a network is tried
_HIDDEN = 64
_GENES, _EXAMPLES = 133, 200_000  # genes of each condition that weights are fitted to, and most in all
_FEWEST_JUDGED = 40  # conditions of a kind of question that decide whether the network is used there
_BATCH, _EPOCHS, _RATE, _DECAY = 32, 9, 4e-3, 1e-2  # conditions, passes, learning rate and weight decay
_CONTRAST, _TEMPERATURE = 0.05, 0.1  # weight of telling conditions apart, and distance in scales of genes that counts
_SAME = 1e-3  # standard deviation of evidence below which it is the same everywhere: the rest is rounding
_BOUND = 8.0  # standard deviations that evidence is clipped at
_ONE_SIDED = 1.645
_AT_ONCE = 2**21  # genes of conditions that evidence is gathered of at once


@dataclass(frozen=True)
class QuestionGain:
    """What the network takes away from the squared error of one kind of question.

    Attributes
    ----------
    share, half_width
        Share of the squared error, and half the width of its 95 % interval over perturbations.
    n_conditions
        Conditions that were predicted by networks that were not fitted to their perturbations.
    is_used
        Whether the network is used.
    """

    share: float
    half_width: float
    n_conditions: int
    is_used: bool


@dataclass(frozen=True)
class EvidenceHead:
    """Networks of the folds.

    Attributes
    ----------
    center_F, spread_F
        Mean and standard deviation of evidence.
    weights
        Weights and biases of the layers, float32, with the folds as first axis.
    gains
        Gain in each kind of question.
    """

    center_F: np.ndarray
    spread_F: np.ndarray
    weights: tuple[np.ndarray, ...]
    gains: Mapping[Any, QuestionGain]

    @property
    def is_consistent(self) -> bool:
        """Whether the layers fit each other and the evidence."""
        sizes = [len(self.center_F), *(bias.shape[-1] for bias in self.weights[1::2])]
        shapes = [w.shape[1:] for w in self.weights[::2]]
        n_folds = {len(w) for w in self.weights}
        return len(n_folds) == 1 and sizes[-1] == 1 and shapes == list(zip(sizes[:-1], sizes[1:], strict=True))

    def is_used(self, key: Key) -> bool:
        """Whether predictions of a kind of question are corrected."""
        return key in self.gains and self.gains[key].is_used

    def corrections(
        self,
        evidence: Evidence,
        questions: Sequence[Question],
        kernels_mG: np.ndarray,
        base_mG: np.ndarray,
        *,
        device: torch.device,
        fold_m: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return what is added to the changes of questions, float32 ``[m, G]``.

        ``fold_m`` has the network of each question, by which a training condition does not know itself; if None, the
        networks are averaged.
        """
        result = np.empty(base_mG.shape, dtype=np.float32)
        genes = np.arange(base_mG.shape[1])
        weights = [torch.from_numpy(w).to(device) for w in self.weights]
        for rows in _of_one_context(questions, max(1, _AT_ONCE // len(genes))):
            found = evidence.of([questions[i] for i in rows], kernels_mG[rows], base_mG[rows], genes)
            for k, row in enumerate(rows):
                x = standardised(torch.from_numpy(found[k]).to(device), self.center_F, self.spread_F)
                folds = range(len(weights[0])) if fold_m is None else [int(fold_m[row])]
                outputs = [_forward(x, [w[fold] for w in weights]) for fold in folds]
                result[row] = torch.stack(outputs).mean(dim=0).cpu().numpy()
        return result * evidence.scale_G


def _forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for k in range(0, len(weights) - 2, 2):
        x = functional.silu(torch.addmm(weights[k + 1], x, weights[k]))
    return (x @ weights[-2] + weights[-1])[..., 0]


def _of_one_context(questions: Sequence[Question], size: int) -> list[np.ndarray]:
    """Positions of questions, in groups of one context and at most so many."""
    contexts = np.array([question.context for question in questions])
    found = [np.flatnonzero(contexts == context) for context in dict.fromkeys(contexts.tolist())]
    return [rows[start : start + size] for rows in found for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class LeftOutQuestions:
    """Training conditions, each asked for as if it or its perturbation were not known.

    Attributes
    ----------
    questions, keys
        Questions, and the kind of each.
    kernels_mG, base_mG, observed_mG
        Changes as kernels and as the response model have them, and as observed; float32, NaN where not measured.
    weight_m
        Weights of conditions.
    fold_m
        Fold of each condition's perturbation.
    """

    questions: Sequence[Question]
    keys: Sequence[Key]
    kernels_mG: np.ndarray
    base_mG: np.ndarray
    observed_mG: np.ndarray
    weight_m: np.ndarray
    fold_m: np.ndarray


@dataclass(frozen=True)
class _Group:
    """Questions of one kind in one context, of which some genes are examples.

    ``x`` is the evidence ``[m, g, F]``; ``base``, ``observed`` and ``known`` are ``[m, g]``, ``scale`` ``[g]``, and
    ``rows``, ``fold`` and ``weight`` ``[m]``.
    """

    rows: np.ndarray
    fold: np.ndarray
    x: Tensor
    base: Tensor
    observed: Tensor
    known: Tensor
    scale: Tensor
    weight: Tensor

    def predict(self, some: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Corrected changes of some of the questions, ``[some, g]``."""
        x = self.x[some]
        correction = _forward(x.reshape(-1, x.shape[-1]), weights).reshape(x.shape[:2])
        return self.base[some] + self.scale * correction

    def errors(self, predicted: Tensor, some: Tensor) -> Tensor:
        """Squared error of some of the questions, ``[some]``."""
        missed = torch.where(self.known[some], predicted - self.observed[some], 0.0)
        return missed.square().mean(dim=1) * self.weight[some]


def _groups(
    evidence: Evidence, asked: LeftOutQuestions, device: torch.device, seed: int
) -> tuple[list[_Group], np.ndarray, np.ndarray]:
    """Gather examples; with the mean and the standard deviation of their evidence, which they are standardised by."""
    rng, n_genes = np.random.default_rng(seed), asked.base_mG.shape[1]
    n_chosen = min(_GENES, n_genes, max(1, _EXAMPLES // len(asked.questions)))
    contexts = [question.context for question in asked.questions]
    kinds = list(zip(contexts, asked.keys, strict=True))
    found = []
    for kind in dict.fromkeys(kinds):
        rows = np.array([i for i, other in enumerate(kinds) if other == kind])
        genes = np.sort(rng.permutation(n_genes)[:n_chosen])
        parts = [
            evidence.of([asked.questions[i] for i in some], asked.kernels_mG[some], asked.base_mG[some], genes)
            for some in np.array_split(rows, 1 + len(rows) * n_genes // _AT_ONCE)
            if len(some)
        ]
        found.append((rows, genes, np.concatenate(parts)))
    every = np.concatenate([x.reshape(-1, x.shape[-1]) for _, _, x in found])
    center, spread = every.mean(axis=0), np.maximum(every.std(axis=0), _SAME)
    groups = []
    for rows, genes, x in found:
        observed = torch.from_numpy(asked.observed_mG[np.ix_(rows, genes)]).to(device)
        groups.append(
            _Group(
                rows, asked.fold_m[rows], standardised(torch.from_numpy(x).to(device), center, spread),
                torch.from_numpy(asked.base_mG[np.ix_(rows, genes)]).to(device), torch.nan_to_num(observed),
                torch.isfinite(observed), torch.from_numpy(evidence.scale_G[genes]).to(device),
                torch.from_numpy(asked.weight_m[rows].astype(np.float32)).to(device),
            )
        )  # fmt: skip
    return groups, center, spread


def fit_head(
    evidence: Evidence, asked: LeftOutQuestions, *, device: torch.device, seed: int, tick: Callable[[], None]
) -> EvidenceHead | None:
    """Fit a network without each fold; None if they help with no kind of question."""
    groups, center, spread = _groups(evidence, asked, device, seed)
    before, after = np.zeros(len(asked.questions)), np.zeros(len(asked.questions))
    networks = []
    for k in range(N_FOLDS):
        networks.append(_fit_network(groups, k, seed=seed + k))
        for group in groups:
            mine = torch.from_numpy(np.flatnonzero(group.fold == k)).to(device)
            rows = group.rows[group.fold == k]
            with torch.no_grad():
                before[rows] = group.errors(group.base[mine], mine).cpu().numpy()
                after[rows] = group.errors(group.predict(mine, networks[-1]), mine).cpu().numpy()
        tick()
        if not after.sum() < before.sum():
            return None  # what comes first is not better off: the other folds are not tried
    gains = _gains(before, after, asked)
    if not any(gain.is_used for gain in gains.values()):
        return None
    weights = tuple(torch.stack(layer).cpu().numpy() for layer in zip(*networks, strict=True))
    return EvidenceHead(center, spread, weights, gains)


def _gains(before_m: np.ndarray, after_m: np.ndarray, asked: LeftOutQuestions) -> dict[Key, QuestionGain]:
    """Compare squared errors of conditions in each kind of question."""
    found = {}
    for key in dict.fromkeys(asked.keys):
        mine = np.array([other == key for other in asked.keys])
        labels = np.array([q.perturbation for q, is_mine in zip(asked.questions, mine, strict=True) if is_mine])
        _, of_label = np.unique(labels, return_inverse=True)
        total = before_m[mine].sum()
        if not total:
            continue
        # contexts of a perturbation are not independent of each other
        gain = np.bincount(of_label, (before_m - after_m)[mine]) / total
        share, error = gain.sum(), np.sqrt(len(gain)) * gain.std(ddof=min(1, len(gain) - 1))
        is_used = mine.sum() >= _FEWEST_JUDGED and share > _ONE_SIDED * error
        found[key] = QuestionGain(float(share), 1.96 * float(error), int(mine.sum()), bool(is_used))
    return found


def _fit_network(groups: Sequence[_Group], fold: int, *, seed: int) -> list[Tensor]:
    """Fit one network without a fold; it begins as a correction of 0.

    The loss is the squared error, and the cross-entropy of recognising a condition among those of a batch by the mean
    absolute difference of its prediction from what was observed (contrast, van den Oord et al. 2018, arXiv:1807.03748).
    """
    generator = torch.Generator().manual_seed(seed)
    device, n_evidence = groups[0].x.device, groups[0].x.shape[-1]
    sizes = [n_evidence, _HIDDEN, _HIDDEN, 1]
    weights = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        w = torch.randn(n_in, n_out, generator=generator) / n_in**0.5
        weights += [w if n_out > 1 else torch.zeros_like(w), torch.zeros(n_out)]
    weights = [w.to(device).requires_grad_() for w in weights]
    others = [torch.from_numpy(np.flatnonzero(group.fold != fold)) for group in groups]
    errors = [group.errors(group.base[rows], rows) for group, rows in zip(groups, others, strict=True)]
    unit = torch.cat(errors).mean().clamp_min(1e-12)
    batches = [(g, k) for g, rows in enumerate(others) for k in range(-(-len(rows) // _BATCH))]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(2, _EPOCHS * len(batches)))
    for _ in range(_EPOCHS):
        orders = [rows[torch.randperm(len(rows), generator=generator)] for rows in others]
        for b in torch.randperm(len(batches), generator=generator).tolist():
            g, k = batches[b]
            group, some = groups[g], orders[g][k * _BATCH : (k + 1) * _BATCH].to(device)
            predicted = group.predict(some, weights)
            apart = torch.cdist(predicted / group.scale, group.observed[some] / group.scale, p=1) / len(group.scale)
            contrast = functional.cross_entropy(-apart / _TEMPERATURE, torch.arange(len(some), device=device))
            loss = group.errors(predicted, some).mean() / unit + _CONTRAST * contrast
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return [w.detach() for w in weights]


def standardised(x: Tensor, center_F: np.ndarray, spread_F: np.ndarray) -> Tensor:
    """Evidence in standard deviations, bounded."""
    center, spread = (torch.from_numpy(v).to(x.device) for v in (center_F, spread_F))
    return ((x - center) / spread).clamp_(-_BOUND, _BOUND)
