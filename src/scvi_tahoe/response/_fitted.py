"""A fitted response model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.response._evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from scvi_tahoe.data import LabelParser
    from scvi_tahoe.response._context_scale import ContextScale
    from scvi_tahoe.response._evidence_head import EvidenceHead
    from scvi_tahoe.response._kernels import ConditionKernels, Conditions
    from scvi_tahoe.response._members import Members, Origin, Stack
    from scvi_tahoe.response._own_gene import OwnGene
    from scvi_tahoe.response._regression import LeftOut, Regression
    from scvi_tahoe.response._responses import Responses


@dataclass(frozen=True)
class Fitted:
    """What a fit of :class:`Kernel` regression, members and calibration leaves."""

    responses: Responses  # NaN filled in
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
    #: inflation in each context, for each kind of question
    local: Mapping[tuple[Origin, bool], Mapping[str, float]] = field(default_factory=dict)
    #: factor of the difference from the mean of the context, for each kind of question; 1 where there is none
    unshrinking: Mapping[tuple[Origin, bool], float] = field(default_factory=dict)
    #: share of the squared change that variances of genes have in addition: strong changes are wrong by more
    spread: Mapping[tuple[Origin, bool], float] = field(default_factory=dict)
    #: share of the squared change, mean over genes, that the variance of a condition has in addition
    sized: Mapping[tuple[Origin, bool], float] = field(default_factory=dict)
    #: share of predicted changes that is kept, by their strength, for each kind of question (:func:`shaped`)
    shares: Mapping[tuple[Origin, bool], np.ndarray] = field(default_factory=dict)
    #: contexts that show nothing: they have no say elsewhere, and their own mean is what is predicted there
    silent: frozenset[str] = frozenset()
    #: network that corrects predictions, where it is better, and the fold that knows each condition least
    head: EvidenceHead | None = None
    fold_n: np.ndarray | None = None
    #: scale on which members and kernels compare contexts; if None, changes are compared as they are
    scale: ContextScale | None = None

    def factors(self, contexts: Sequence[str], control_means: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what changes on the scale are multiplied by, ``[n, G]``; ones ``[n, 1]`` where there is none."""
        if self.scale is None:
            return np.ones((len(contexts), 1), dtype=np.float32)
        return self.scale.factors(np.asarray(contexts), {**control_means, **self.responses.control_means})

    @cached_property
    def evidence(self) -> Evidence:
        """What the network reads."""
        r = self.responses
        return Evidence(self.members, self.conditions, r.genes, r.control_means)
