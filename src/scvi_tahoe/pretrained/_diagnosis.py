"""Two questions that only data answer: which attention weights were trained with, and on which scale."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.pretrained._pretrained_model import network_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pandas as pd
    from torch import Tensor

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.nn import AttentionName, SetTransformer
    from scvi_tahoe.pretrained._report import LoadingReport

logger = logging.getLogger(__name__)

_KINDS: dict[str, tuple[AttentionName, ...]] = {"llama": ("full", "causal", "causal_rope"), "gpt2": ("full", "causal")}
_SURE, _LIKELY = 0.999, 0.95
_FEWEST_SETS = 8


@dataclass(frozen=True, eq=False)
class AttentionDiagnosis:
    """Loss of a network under each attention."""

    #: one row a set, one column an attention
    losses: pd.DataFrame
    #: the attention with the lowest mean loss
    best: str
    #: probability that ``best`` has a lower expected loss than the second best, by a normal approximation to the paired
    #: differences between sets, lowered for ``best`` having been picked out of several (Bonferroni)
    certainty: float
    #: in words
    verdict: str


@dataclass(frozen=True)
class ScaleCheck:
    """Predictions of controls from controls, compared with those controls."""

    #: mean of the predictions over mean of the controls
    mean_ratio: float
    #: standard deviation of gene means, predicted over observed
    sd_ratio: float
    #: Pearson correlation of gene means
    correlation: float
    #: whether the data are on the scale of the weights
    ok: bool
    #: in words, with what to do
    message: str


def diagnose_attention(
    network: SetTransformer,
    minibatches: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> AttentionDiagnosis:
    """Return the loss of a network under every kind of attention, and which it was probably trained with.

    Parameters
    ----------
    network
        The network as loaded, not trained further.
    minibatches
        Pairs of keyword arguments for the network's ``forward`` and observed cells ``(S, N, G)``; a ValueError if none.
    loss
        Loss of predicted and observed cells, one value per set, ``(S,)``.
    """
    import pandas as pd

    config, state = network.config, network.state_dict()
    variants = {kind: network_with(replace(config, attention=kind), state) for kind in _KINDS[network.config.backbone]}
    rows: dict[str, list[float]] = {kind: [] for kind in variants}
    with torch.inference_mode():
        for inputs, observed_SNG in minibatches:
            for kind, variant in variants.items():
                values_S = loss(variant(**inputs).prediction_SNG, observed_SNG)
                rows[kind] += values_S.reshape(-1).float().tolist()
    losses = pd.DataFrame(rows)
    if losses.empty:
        raise ValueError("There are no minibatches to compute a loss on.")
    return _verdict(losses)


def compare_scale(predicted_SNG: Tensor, control_SNG: Tensor) -> ScaleCheck:
    """Return whether controls that a network predicts from controls, cells ``(S, N, G)``, look like them.

    A network trained on data of another normalisation (another target sum, counts, scaled values) predicts cells of its
    own scale, and the moments disagree.
    """
    predicted_G = predicted_SNG.flatten(0, -2).double().mean(0)
    observed_G = control_SNG.flatten(0, -2).double().mean(0)
    mean_ratio = _ratio(predicted_G.mean(), observed_G.mean())
    sd_ratio = _ratio(predicted_G.std(), observed_G.std())
    centred = predicted_G - predicted_G.mean(), observed_G - observed_G.mean()
    norm = centred[0].norm() * centred[1].norm()
    correlation = float((centred[0] * centred[1]).sum() / norm) if norm > 0 else 0.0
    ok = 0.5 <= mean_ratio <= 2.0 and 0.5 <= sd_ratio <= 2.0 and correlation >= 0.5
    figures = f"mean x{mean_ratio:.2f}, spread x{sd_ratio:.2f}, correlation {correlation:.2f}"
    message = f"Controls predicted from controls agree with them ({figures})."
    if not ok:
        message = (
            f"Controls predicted from controls do not look like them ({figures}): the data are normalised "
            "differently from the training data of the weights (ST weights: log1p of counts to the median depth or to "
            "10,000), or genes are in another order."
        )
    return ScaleCheck(mean_ratio, sd_ratio, correlation, ok, message)


def verify_scale(
    module: TahoeSTModule, report: LoadingReport, minibatch: Mapping[str, Tensor], genes: np.ndarray
) -> None:
    """Refuse data on another scale than the weights': a module in eval mode must predict controls from controls.

    Genes that only the data have are not compared, and nothing is where a tensor from cells to cells is wholly new or
    the user changed what the network computes. ``minibatch`` holds control sets, ``genes`` the names of their columns.
    """
    new = [r.tensor for r in report.records if r.status == "new" and not r.tensor.startswith("gene_decoder.")]
    changed = [name for name in report.decisions if name in ("drop_genes", "other_head", "other_attention")]
    if new or changed:
        logger.info(f"Scale not checked: {', '.join([*changed, *new[:1]])} changed what controls are predicted.")
        return
    known = next((np.isin(genes, match.matched) for match in report.matches if match.axis == "genes"), None)
    control_SNX = minibatch[TENSORS.CONTROL]
    with torch.inference_mode():
        output = module(control_SNX, minibatch[TENSORS.PERTURBATION], minibatch.get(TENSORS.BATCH))
    n_genes = output.prediction_SNG.shape[-1]
    compared = torch.arange(n_genes) if known is None else torch.from_numpy(np.flatnonzero(known))
    # where the cells come with an embedding, it stands behind the genes
    check = compare_scale(output.prediction_SNG[..., compared], control_SNX[..., compared])
    if not check.ok:
        raise ValueError(f"{check.message} To load the weights anyway, pass check_scale=False.")
    logger.info(check.message)


def _ratio(a: Tensor, b: Tensor) -> float:
    return float(a / b) if float(b) else math.inf


def _verdict(losses: pd.DataFrame) -> AttentionDiagnosis:
    means = losses.mean().sort_values()
    best, second = str(means.index[0]), str(means.index[1])
    difference = losses[second] - losses[best]
    error = float(difference.std(ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
    z = float(difference.mean()) / error if error > 0 else (math.inf if difference.mean() > 0 else 0.0)
    # any of them could have been the best by chance, before any other
    n_orders = len(means) * (len(means) - 1)
    certainty = max(0.0, 1 - n_orders * 0.5 * math.erfc(z / math.sqrt(2)))
    if len(losses) < _FEWEST_SETS or certainty < _LIKELY:
        how_sure = "these data do not tell: look at more sets, or at cells the weights were trained on"
    else:
        how_sure = "clearly" if certainty >= _SURE else "probably"
    figures = ", ".join(f"{kind} {value:.4g}" for kind, value in means.items())
    verdict = f"Mean loss over {len(losses)} sets: {figures}. Lowest under {best!r}; {how_sure} (P = {certainty:.3f})."
    return AttentionDiagnosis(losses, best, certainty, verdict)
