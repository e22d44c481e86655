"""TahoeST, the public model class, and ensembles of it."""

from __future__ import annotations

from scvi_tahoe.model._ensemble import TahoeEnsemble
from scvi_tahoe.model._export import pretrained_of
from scvi_tahoe.model._tahoe_st import TahoeST, suggest_decoder_weight

__all__ = [
    "TahoeEnsemble",
    "TahoeST",
    "pretrained_of",
    "suggest_decoder_weight",
]
