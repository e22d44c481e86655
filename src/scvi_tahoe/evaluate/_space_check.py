"""In which space did the model predict, and was the part that makes genes of it ever trained?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.evaluate._check import Check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

__all__ = ["PREDICTION_RECORD", "check_space"]

#: key of ``uns`` under which a prediction says where its expression comes from
PREDICTION_RECORD = "scvi_tahoe_prediction"
#: weight of the decoder's loss below which it hardly learned; the paper uses 0.1
_SMALL_WEIGHT = 0.001


def check_space(prediction: AnnData, *, counts: bool = False) -> Check:
    """Compare the space the model was trained in with genes, the space that is scored.

    Reads ``prediction.uns["scvi_tahoe_prediction"]``, which ``TahoeST.predict`` writes: ``space`` (``"expression"``,
    ``"embedding"``, ``"delta"`` or ``"counts"``), ``genes_from`` (``"network"`` or ``"decoder"``), and of the decoder
    ``decoder_trained`` and ``decoder_weight``. A gene decoder that was never trained gives numbers of the right shape
    that mean nothing. Predictions of other models carry no record and pass with a note.

    Parameters
    ----------
    prediction
        Predicted cells.
    counts
        Whether raw counts are scored, not log1p expression.
    """
    wanted = "counts" if counts else "expression"
    record: Mapping[str, Any] | None = prediction.uns.get(PREDICTION_RECORD)
    name, allowed = "space", wanted
    if record is None:
        return Check(
            name, "note", allowed=allowed, message="the prediction does not say which space it was trained in."
        )
    space = str(record.get("space", "expression"))
    if space != wanted:
        message = f"the prediction holds {space}, and {wanted} is scored: predict with output={wanted!r}."
        return Check(name, "error", allowed=allowed, message=message)
    if record.get("genes_from", "network") != "decoder":
        return Check(name, "ok", allowed=allowed)
    weight = float(record.get("decoder_weight", float("nan")))
    if not bool(record.get("decoder_trained", False)):
        message = (
            "the model was trained in embedding space and its gene decoder was not trained, so the genes it gives mean "
            "nothing. Train it with a gene decoder loss, or use representation='expression'."
        )
        return Check(name, "error", weight, allowed, message)
    if weight < _SMALL_WEIGHT:
        message = (
            f"the gene decoder was trained with a loss weight of {weight:g}, so it may have learned next to nothing."
        )
        return Check(name, "warning", weight, allowed, message)
    return Check(name, "ok", weight, allowed)
