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
_EXAMPLES = 200_000  # genes of conditions that weights are fitted to
_QUESTIONS = 2000  # conditions of each way to leave out that they are taken from
_FEWEST_JUDGED = 40  # conditions of a kind of question that decide whether the network is used there
_BATCH, _EPOCHS, _RATE, _DECAY = 4096, 9, 4e-3, 1e-2
_BOUND = 8.0  # standard deviations that evidence is clipped at
_ONE_SIDED = 1.645
_AT_ONCE = 2**21  # genes of conditions that evidence is gathered of at once


@dataclass(frozen=True)
class Gain:
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
    gains: Mapping[Any, Gain]

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
                x = self._standardised(torch.from_numpy(found[k]).to(device))
                folds = range(len(weights[0])) if fold_m is None else [int(fold_m[row])]
                outputs = [_forward(x, [w[fold] for w in weights]) for fold in folds]
                result[row] = torch.stack(outputs).mean(dim=0).cpu().numpy()
        return result * evidence.scale_G

    def _standardised(self, x: Tensor) -> Tensor:
        center, spread = (torch.from_numpy(v).to(x.device) for v in (self.center_F, self.spread_F))
        return ((x - center) / spread).clamp_(-_BOUND, _BOUND)


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


def fit_head(
    evidence: Evidence, asked: LeftOutQuestions, *, device: torch.device, seed: int, tick: Callable[[], None]
) -> EvidenceHead | None:
    """Fit a network without each fold; None if they help with no kind of question."""
    rng = np.random.default_rng(seed)
    n, n_genes = asked.base_mG.shape
    genes_of_one = int(np.clip(_EXAMPLES // n, 1, n_genes))
    parts = []
    for rows in _of_one_context(asked.questions, n):
        genes = np.sort(rng.permutation(n_genes)[:genes_of_one])
        for some in np.array_split(rows, max(1, len(rows) * genes_of_one // _AT_ONCE)):
            found = evidence.of([asked.questions[i] for i in some], asked.kernels_mG[some], asked.base_mG[some], genes)
            residual = (asked.observed_mG - asked.base_mG)[np.ix_(some, genes)]
            parts.append((some, found, residual, np.broadcast_to(evidence.scale_G[genes], residual.shape)))
    row = np.concatenate([np.repeat(some, found.shape[1]) for some, found, _, _ in parts])
    x = torch.from_numpy(np.concatenate([found.reshape(-1, found.shape[2]) for _, found, _, _ in parts]))
    residual, scale = (torch.from_numpy(np.concatenate([p[k].ravel() for p in parts])) for k in (2, 3))
    known = torch.isfinite(residual)
    center, spread = x.mean(dim=0), x.std(dim=0) + 1e-6
    head = EvidenceHead(center.numpy(), spread.numpy(), (), {})
    x = head._standardised(x.to(device))
    residual, scale = torch.nan_to_num(residual).to(device), scale.to(device)
    weight = torch.from_numpy(asked.weight_m[row].astype(np.float32)).to(device) * known.to(device)
    weight = weight / (weight * residual.square()).mean().clamp_min(1e-12)
    fold, networks = asked.fold_m[row], []
    left = torch.zeros_like(residual)
    for k in range(N_FOLDS):
        others, mine = (torch.from_numpy(np.flatnonzero(chosen)).to(device) for chosen in (fold != k, fold == k))
        networks.append(_fit_network(x, residual, scale, weight, others, seed=seed + k))
        with torch.no_grad():
            left[mine] = _forward(x[mine], networks[-1]) * scale[mine]
        tick()
        if not k and not float((weight * ((residual - left).square() - residual.square()))[mine].sum()) < 0:
            return None  # the first fold is not better off: the others are not tried
    before, after = (
        np.bincount(row, (weight * r.square()).cpu().numpy(), minlength=n) for r in (residual, residual - left)
    )
    gains = _gains(before, after, asked)
    if not any(gain.is_used for gain in gains.values()):
        return None
    weights = tuple(torch.stack(layer).cpu().numpy() for layer in zip(*networks, strict=True))
    return EvidenceHead(head.center_F, head.spread_F, weights, gains)


def _gains(before_m: np.ndarray, after_m: np.ndarray, asked: LeftOutQuestions) -> dict[Key, Gain]:
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
        found[key] = Gain(float(share), 1.96 * float(error), int(mine.sum()), bool(is_used))
    return found


def _fit_network(
    x: Tensor, residual: Tensor, scale: Tensor, weight: Tensor, rows: Tensor, *, seed: int
) -> list[Tensor]:
    """Fit one network to some rows; it begins as a correction of 0."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [x.shape[1], _HIDDEN, _HIDDEN, 1]
    weights = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        w = torch.randn(n_in, n_out, generator=generator) / n_in**0.5
        weights += [w if n_out > 1 else torch.zeros_like(w), torch.zeros(n_out)]
    weights = [w.to(x.device).requires_grad_() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY)
    n_steps = max(1, len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_EPOCHS * n_steps)
    for _ in range(_EPOCHS):
        order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        for batch in order.tensor_split(n_steps):
            optimizer.zero_grad()
            error = residual[batch] - scale[batch] * _forward(x[batch], weights)
            (weight[batch] * error.square()).mean().backward()
            optimizer.step()
            schedule.step()
    return [w.detach() for w in weights]
