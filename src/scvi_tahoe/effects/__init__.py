"""What predicted or measured changes of conditions say: dose responses, interactions, and what undoes a signature.

Functions take an AnnData of one row for each condition: ``X``, the change of every gene against control, and, where it
is known, ``layers["sd"]``, its standard deviation. :meth:`scvi_tahoe.TahoeST.predict_effects` with ``as_adata=True``
and :meth:`scvi_tahoe.response.ResponseModel.predict` return such ones; measured changes have the same form.
"""

from __future__ import annotations

from scvi_tahoe.effects._condition_embedding import condition_embedding
from scvi_tahoe.effects._dose_response import dose_response, hill
from scvi_tahoe.effects._effects_adata import effects_adata
from scvi_tahoe.effects._gene_set_scores import gene_set_scores
from scvi_tahoe.effects._interactions import interactions
from scvi_tahoe.effects._power import cells_needed, power
from scvi_tahoe.effects._reversal import rank_reversals

__all__ = [
    "cells_needed",
    "condition_embedding",
    "dose_response",
    "effects_adata",
    "gene_set_scores",
    "hill",
    "interactions",
    "power",
    "rank_reversals",
]
