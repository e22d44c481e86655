"""Runs of published size made smaller by one number."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_tahoe.study._run_config import TahoeRun

__all__ = ["scaled"]

_FEWEST_CELLS = 16
_NARROWEST = 16


def scaled(run: TahoeRun, scale: float) -> TahoeRun:
    """Return a run with its sizes multiplied by one number.

    Steps, steps between validations, cells of a set and widths of a gene decoder are multiplied by it. Learning rates
    are divided by it, since the rate at which Adam trains a network well goes with the inverse of its width (Yang et
    al. 2022, *Tensor Programs V*), and the width of the network that starts the study is meant to shrink with the rest.
    Sets of a step stay.

    Parameters
    ----------
    run
        At its full size.
    scale
        1 leaves it as it is.
    """
    if scale == 1:
        return run
    train = run.train
    set_size = run.model.set_size
    between = train.validate_every
    return replace(
        run,
        model=replace(
            run.model,
            set_size=None if set_size is None else max(_FEWEST_CELLS, round(set_size * scale)),
            network=_with_narrower_decoder(run.model.network, scale),
        ),
        train=replace(
            train,
            max_steps=None if train.max_steps is None else max(1, round(train.max_steps * scale)),
            validate_every=None if between is None else max(1, round(between * scale)),
            lr=None if train.lr is None else float(f"{train.lr / scale:.3g}"),
        ),
    )  # fmt: skip


def _with_narrower_decoder(network: dict[str, Any], scale: float) -> dict[str, Any]:
    decoder = network.get("gene_decoder") or {}
    if "hidden" not in decoder:
        return network
    hidden = [max(_NARROWEST, round(width * scale)) for width in decoder["hidden"]]
    return {**network, "gene_decoder": {**decoder, "hidden": hidden}}
