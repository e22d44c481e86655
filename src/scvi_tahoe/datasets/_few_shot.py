"""The few-shot task on real data that the demo trains on and that our quality figures are quoted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.datasets._screens import papalexi_thp1

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["FewShotTask", "papalexi_few_shot"]

_TARGETS = (
    *("ATF2", "BRD4", "CMTM6", "CUL3", "IFNGR1", "IRF1"),
    *("JAK2", "MYC", "NFKBIA", "SMAD4", "STAT2", "UBE2L6"),
)
_VALIDATION_TARGETS = ("CAV1", "STAT3")


@dataclass(frozen=True, kw_only=True)
class FewShotTask:
    """A context that is seen for a part of its perturbations, the rest of which is to be predicted.

    Parameters
    ----------
    train
        Everything that may be seen: the other contexts in full, and of `context` its controls and seen perturbations.
    held_out
        The cells to be predicted: the perturbations `targets` in `context`, with that context's control cells.
    targets
        The perturbations held out in `context`.
    validation_targets
        Perturbations of `context` inside `train` that are meant for choosing a model, not for its gradients.
    context
        The context that is seen in part.
    control
        Label of the control cells.
    perturbation_key
        Column of `obs` with the perturbation labels.
    context_key
        Column of `obs` with the contexts.
    """

    train: AnnData
    held_out: AnnData
    targets: tuple[str, ...]
    validation_targets: tuple[str, ...]
    context: str
    control: str
    perturbation_key: str
    context_key: str


def papalexi_few_shot() -> FewShotTask:
    """Return the few-shot task on :func:`~scvi_tahoe.datasets.papalexi_thp1`.

    Replicates 1 and 2 are seen in full. Replicate 3 is seen for half of its targets, of which CAV1 and STAT3 are meant
    for validation; twelve targets are held out there. Replicate 3's control cells are in both parts, because a
    prediction starts from them.

    Returns
    -------
    :class:`FewShotTask` whose AnnData hold `log1p` expression in `X`, counts in `layers["counts"]` and, in `obs`,
    `"target_gene"`, `"replicate"` and `"guide"`.
    """
    screen = papalexi_thp1()
    screen.obs = screen.obs[["perturbation", "bio_rep", "guide"]].rename(
        columns={"perturbation": "target_gene", "bio_rep": "replicate"}
    )
    control, context = str(screen.uns["control_label"]), "rep_3"
    label = screen.obs["target_gene"].astype(str).to_numpy()
    in_context = (screen.obs["replicate"] == context).to_numpy()
    is_target = np.isin(label, _TARGETS)
    return FewShotTask(
        train=screen[~(in_context & is_target)].copy(),
        held_out=screen[in_context & (is_target | (label == control))].copy(),
        targets=_TARGETS,
        validation_targets=_VALIDATION_TARGETS,
        context=context,
        control=control,
        perturbation_key="target_gene",
        context_key="replicate",
    )
