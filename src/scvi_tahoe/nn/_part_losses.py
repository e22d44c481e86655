"""Losses of the parts that a network may have beside its prediction of cells: pure functions, as the distances are.

S sets, N cells of a set, G genes, E width of a cell embedding, B technical batches. Everything is computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from scvi_tahoe.nn._losses import energy_distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["batch_classification", "confidence_error", "control_shift", "decoder_loss", "distillation"]


def decoder_loss(decoded_SNG: Tensor, observed_SMG: Tensor, *, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How far decoded genes are from observed ones: the loss of the cells, asked of genes.

    A State Transition model of cell embeddings is trained on both at once (Adduri et al. 2025, *Predicting cellular
    responses to perturbation across diverse contexts with State*, bioRxiv 2025.06.26.661135). The two spaces differ in
    scale, see :func:`~scvi_tahoe.suggest_decoder_weight`.

    Parameters
    ----------
    decoded_SNG, observed_SMG
        Expression read from the predicted cells, and that of the observed cells.
    distance
        Of the predicted from the observed cells, one value a set.

    Returns
    -------
    One value a set, in the units of the distance.
    """
    return distance(decoded_SNG, observed_SMG)


def distillation(read_SNE: Tensor, observed_SME: Tensor) -> Tensor:
    """Energy distance between cell embeddings read from the network's hidden cells and those of the observed cells.

    A linear reading of the student's hidden cells is regressed on the teacher, as in Romero et al. 2015, *FitNets:
    hints for thin deep nets* (arXiv 1412.6550); set by set, since a screen pairs no cells.

    Parameters
    ----------
    read_SNE, observed_SME
        Embeddings read from the hidden cells, and those of the observed cells. No gradient flows into the latter.

    Returns
    -------
    One value a set, in the units of the embedding.
    """
    return energy_distance(read_SNE, observed_SME, diagonal="excluded")


def batch_classification(logits_SB: Tensor, batch_S: Tensor) -> Tensor:
    """Cross entropy of the technical batch of each set, as read from the batch token.

    Of State Transition models with such a token (Adduri et al. 2025, bioRxiv 2025.06.26.661135).

    Parameters
    ----------
    logits_SB
        Scores of the batches.
    batch_S
        The right one of each set, counted from 0.

    Returns
    -------
    One value a set, in nats.
    """
    return F.cross_entropy(logits_SB.float(), batch_S, reduction="none")


def confidence_error(confidence_S: Tensor, loss_S: Tensor, *, scale: float) -> Tensor:
    """Squared error of the loss that the confidence token expects.

    A network that learns to predict its own loss: Yoo & Kweon 2019, *Learning loss for active learning*
    (arXiv 1905.03677), here by regression, as in State Transition models (Adduri et al. 2025, bioRxiv
    2025.06.26.661135).

    Parameters
    ----------
    confidence_S
        Expected loss of each set.
    loss_S
        Its loss. No gradient flows into it.
    scale
        What the loss is multiplied with to be the target.

    Returns
    -------
    One value a set, in squared units of the scaled loss.
    """
    return (confidence_S.float() - scale * loss_S.detach()).square()


def control_shift(predicted_SNG: Tensor, control_SNG: Tensor) -> Tensor:
    """Mean absolute difference of each predicted cell from the control cell that it starts from.

    The penalty of the lasso (Tibshirani 1996, *Regression shrinkage and selection via the lasso*, JRSS B 58, 267), on
    changes instead of coefficients: a gene stays as it is unless the other terms pay for its change.

    Parameters
    ----------
    predicted_SNG, control_SNG
        Predicted cells and their controls.

    Returns
    -------
    One value a set, in the units of the cells.
    """
    return (predicted_SNG.float() - control_SNG.float()).abs().mean((1, 2))
