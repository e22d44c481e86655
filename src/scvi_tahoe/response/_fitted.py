"""What is known of a fitted response model, and the changes that it was fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from scvi_tahoe.response._evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch

    from scvi_tahoe.data import LabelParser
    from scvi_tahoe.response._evidence_head import EvidenceHead
    from scvi_tahoe.response._kernels import ConditionKernels, Conditions
    from scvi_tahoe.response._members import Members, Origin, Stack
    from scvi_tahoe.response._own_gene import OwnGene
    from scvi_tahoe.response._regression import LeftOut, Regression


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
    #: share of predicted changes that is kept, by their strength, for each kind of question (see :mod:`._shape`)
    shares: Mapping[tuple[Origin, bool], np.ndarray] = field(default_factory=dict)
    #: contexts that show nothing: they have no say elsewhere, and their own mean is what is predicted there
    silent: frozenset[str] = frozenset()
    #: network that corrects predictions, where it is better, and the fold that knows each condition least
    head: EvidenceHead | None = None
    fold_n: np.ndarray | None = None

    @cached_property
    def evidence(self) -> Evidence:
        """What the network reads."""
        r = self.responses
        return Evidence(self.members, self.conditions, r.genes, r.control_means)
