"""Contrastive losses: a prediction must be told from what was observed of the other sets of the minibatch.

S sets, N predicted and M observed cells of a set, G genes, P width of a perturbation embedding, E width of a cell
embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scvi_tahoe.nn._losses import set_mean
from scvi_tahoe.nn._terms import register_term

if TYPE_CHECKING:
    from torch import Tensor

# vectors this much shorter than the typical one have no direction: an untrained network predicts changes of zero, at
# which the gradient of a cosine is infinite
_NO_DIRECTION = 0.01


def same_perturbation(perturbation_SP: Tensor) -> Tensor:
    """Whether two sets have the same perturbation, ``[S, S]``: equal rows, since the network cannot tell them apart."""
    return torch.cdist(perturbation_SP.float(), perturbation_SP.float(), p=1) == 0


def info_nce(x_SG: Tensor, y_SG: Tensor, same_SS: Tensor, *, temperature: float) -> Tensor:
    r"""InfoNCE with cosine similarity: how confidently ``x`` of a set is matched to its own ``y`` among all sets.

    .. math:: -\log\frac{\exp(\cos(x_s, y_s) / \tau)}{\sum_t \exp(\cos(x_s, y_t) / \tau)}

    with *t* over the set itself and all sets that are not the same (van den Oord et al. 2018, *Representation learning
    with contrastive predictive coding*, arXiv 1807.03748). It is 0 if there are no other sets, and log S if no set can
    be distinguished. Differences of cosines much larger than the temperature count as certain.
    """
    return _surprise(_cosine(x_SG, y_SG) / temperature, same_SS)


@register_term(
    "contrastive", options={"temperature": "temperature"}, needs=("control_SNG", "control_mean_SG", "perturbation_SP")
)
def contrastive_delta(
    predicted_SNG: Tensor,
    observed_SMG: Tensor,
    control_SNG: Tensor,
    control_mean_SG: Tensor,
    perturbation_SP: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """Contrast between perturbations: the predicted delta must resemble its own observed delta more than the others'.

    :func:`info_nce` of the deltas of set means. It asks what the perturbation discrimination score asks (PDS; Roohani
    et al. 2025, *Virtual Cell Challenge*, Cell 188, 3370; with the cosine of its 2026 edition), in a form that has a
    gradient. Only directions count: the size of a change must come from another term.

    The two deltas have different references on purpose. If both were taken from the set's own controls, they would
    carry the same sampling noise, and match by it alone. If both were taken from the mean of the context, the
    prediction would carry the noise of its controls, and drown it by exaggerating the change. So the predicted delta is
    taken from the control cells that it starts from, and the observed one from the mean control cell of the context.

    Sets with equal perturbation embeddings are not held against each other.
    """
    delta_SG = set_mean(predicted_SNG) - set_mean(control_SNG)
    observed_SG = set_mean(observed_SMG) - control_mean_SG
    return info_nce(delta_SG, observed_SG, same_perturbation(perturbation_SP), temperature=temperature)


@register_term("alignment", options={"temperature": "temperature"}, needs=("perturbation_SP",), of_embedding=True)
def contrastive_alignment(
    predicted_SNE: Tensor, observed_SME: Tensor, perturbation_SP: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Contrastive alignment of two representations of a set: what the network holds of it, and its cell embedding.

    :func:`info_nce` in both directions (Radford et al. 2021, *Learning transferable visual models from natural language
    supervision*, arXiv 2103.00020) of set means, less the mean over the sets of the minibatch: what all cells have in
    common would make all cosines alike. Sets with equal perturbation embeddings are not held against each other, and no
    gradient flows into the observed cell embeddings.
    """
    x_SE, y_SE = set_mean(predicted_SNE), set_mean(observed_SME.detach())
    x_SE, y_SE = x_SE - x_SE.mean(0), y_SE - y_SE.mean(0)
    same_SS = same_perturbation(perturbation_SP)
    logits_SS = _cosine(x_SE, y_SE) / temperature
    return 0.5 * (_surprise(logits_SS, same_SS) + _surprise(logits_SS.mT, same_SS))


def _cosine(x_SG: Tensor, y_SG: Tensor) -> Tensor:
    """Cosine of each ``x`` with each ``y``, ``[S, S]``; what is too short to have a direction is judged by ``y``."""
    shortest = _NO_DIRECTION**2 * y_SG.detach().square().sum(-1).mean() + torch.finfo(torch.float32).eps ** 2
    x_SG, y_SG = (v / (v.square().sum(-1, keepdim=True) + shortest).sqrt() for v in (x_SG, y_SG))
    return x_SG @ y_SG.mT


def _surprise(logits_SS: Tensor, same_SS: Tensor) -> Tensor:
    """Cross entropy of each row with its own column as the right one."""
    own = torch.eye(len(logits_SS), dtype=torch.bool, device=logits_SS.device)
    return logits_SS.masked_fill(same_SS & ~own, -torch.inf).logsumexp(1) - logits_SS.diagonal()
