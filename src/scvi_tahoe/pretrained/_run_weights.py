"""The folder of a run of :mod:`scvi_tahoe.study`: the export in it, with the weights of one of its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe.files import MALFORMED, UnsafeFileError, read_torch, verify_finite, verify_tensor
from scvi_tahoe.nn import merged_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

#: Folder of the export inside the folder of a run.
RUN_MODEL = "model"
_PREFIX = "module.network."


def run_checkpoint(folder: Path, name: str) -> Path:
    """Return the path of a checkpoint of a run: ``'best'``, ``'last'``, ``'step=000400'``, or a file name."""
    path = folder / (name if name.endswith(".ckpt") else f"{name}.ckpt")
    if path.parent != folder or not path.is_file():
        found = sorted(p.name for p in folder.glob("*.ckpt"))
        raise FileNotFoundError(f"the run {folder} has no checkpoint {name!r}; it has {', '.join(found) or 'none'}.")
    return path


def with_checkpoint(model: PretrainedModel, path: Path) -> PretrainedModel:
    """Return the model of a run with the weights of a checkpoint; adapters are added to the weights."""
    content = read_torch(path)
    found = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise UnsafeFileError(f"{path} holds no state_dict; it is not a checkpoint of a run.")
    state = {str(n).removeprefix(_PREFIX): tensor for n, tensor in found.items() if str(n).startswith(_PREFIX)}
    try:
        state = merged_tensors({n: _checked(n, t) for n, t in state.items()}, **_scale(model.extra.get("fitted")))
    except MALFORMED as error:
        raise UnsafeFileError(f"{path} does not hold weights of this run: {error}") from None
    shapes, wanted = ({n: tuple(t.shape) for n, t in tensors.items()} for tensors in (state, model.state_dict))
    if shapes != wanted:
        odd = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise UnsafeFileError(f"{path} and the model of the run disagree about {len(odd)} tensors, e.g. {odd[:3]}.")
    return replace(
        model, state_dict=state, provenance=replace(model.provenance, checkpoint=f"{path.parent.name}/{path.name}")
    )


def holds_run(folder: str | Path) -> bool:
    """Return whether a folder is that of a run with an export in it."""
    model = Path(folder) / RUN_MODEL
    return (model / "config.json").is_file() and (model / "model.safetensors").is_file()


def _checked(name: str, tensor: object) -> Tensor:
    numbers = verify_tensor(name, tensor).detach().float()
    verify_finite(name, numbers)
    return numbers


def _scale(fitted: Mapping[str, Any] | None) -> dict[str, float]:
    adapters = (fitted or {}).get("adapters") or {}
    return {"scale": float(adapters["alpha"]) / float(adapters["rank"])} if adapters else {}
