"""Adapters of a model: attached for a training, kept alone in a folder, put on the same weights again."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from scvi_tahoe.nn import attach_adapters, linear_layers, merge_adapters, original_name

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_tahoe._model import TahoeST
    from scvi_tahoe.train import PlanConfig

__all__ = ["begin_adapters", "end_adapters", "read_adapters", "write_adapters"]

_TENSORS, _SETTINGS = "adapters.safetensors", "adapters.json"
_PREFIX = "network."
_RANK = 8


def begin_adapters(model: TahoeST, plan: PlanConfig) -> None:
    """Attach the adapters that a plan asks for, or verify that the model's own are those.

    Raises
    ------
    ValueError
        If the model holds no pretrained weights, or adapters that the plan does not go on with.
    ImportError
        If PEFT is missing.
    """
    held = model.adapters_
    if plan.recipe != "lora":
        if held is not None:
            raise ValueError(
                f"the model carries adapters, and recipe={plan.recipe!r} trains its weights; call merge_adapters() "
                "first, or go on with recipe='lora'."
            )
        return
    rank = plan.lora_rank or _RANK
    settings = {"rank": rank, "alpha": plan.lora_alpha or 2.0 * rank, "seed": plan.seed}
    if held is not None:
        if differing := [n for n in ("rank", "alpha") if held[n] != settings[n]]:
            raise ValueError(
                f"the model carries adapters of rank {held['rank']} and alpha {held['alpha']:g}, and {differing} of "
                "this run differ; call merge_adapters() first to start with new ones."
            )
        return
    pretrained = {n.removeprefix(_PREFIX) for n in model.pretrained_parameters_ if n.startswith(_PREFIX)}
    layers = linear_layers(model.module.network, pretrained)
    if not layers:
        raise ValueError(
            "recipe='lora' trains adapters beside loaded weights, and this model has none: start from "
            "TahoeST.from_pretrained or TahoeST.load, or take recipe='full'."
        )
    _attach(model, {"layers": layers, **settings})


def _attach(model: TahoeST, adapters: dict[str, Any]) -> None:
    pretrained = set(model.pretrained_parameters_)
    attach_adapters(model.module.network, **adapters)
    model.adapters_ = adapters
    names = [n for n, _ in model.module.named_parameters()]
    model.pretrained_parameters_ = [n for n in names if original_name(n) in pretrained]


def end_adapters(model: TahoeST) -> None:
    """Merge the adapters into the weights."""
    if model.adapters_ is None:
        raise ValueError("the model carries no adapters; train(recipe='lora') attaches them.")
    merge_adapters(model.module.network)
    model.adapters_ = None
    model.pretrained_parameters_ = sorted({original_name(n) for n in model.pretrained_parameters_ if ".lora_" not in n})


def _is_of_base(name: str, adapters: dict[str, Any]) -> bool:
    """Whether a parameter of the module is a weight that adapters stand beside."""
    return original_name(name).removeprefix(_PREFIX).rpartition(".")[0] in adapters["layers"] and ".lora_" not in name


def _fingerprint(model: TahoeST, adapters: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        if _is_of_base(name, adapters):
            digest.update(original_name(name).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_adapters(model: TahoeST, folder: Path) -> None:
    """Write the adapters, and what else of the module is not a layer with adapters, into a folder."""
    adapters = model.adapters_
    if adapters is None:
        raise ValueError("the model carries no adapters to save; train(recipe='lora') attaches them.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        n: t.detach().cpu().contiguous() for n, t in model.module.state_dict().items() if not _is_of_base(n, adapters)
    }
    settings = {**adapters, "base_sha256": _fingerprint(model, adapters)}
    temporary = folder / (_TENSORS + ".part")
    save_file(tensors, temporary)
    os.replace(temporary, folder / _TENSORS)
    temporary = folder / (_SETTINGS + ".part")
    temporary.write_text(json.dumps(settings, indent=1))
    os.replace(temporary, folder / _SETTINGS)


def read_adapters(model: TahoeST, folder: Path) -> None:
    """Put the adapters of a folder on a model with the weights that they were trained on.

    Raises
    ------
    FileNotFoundError
        If the folder holds none.
    ValueError
        If the model carries adapters already, or has other weights.
    """
    if model.adapters_ is not None:
        raise ValueError("the model carries adapters already; call merge_adapters() first.")
    if not (folder / _SETTINGS).is_file() or not (folder / _TENSORS).is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no adapters; save_adapters writes {_SETTINGS} and {_TENSORS}.")
    settings = json.loads((folder / _SETTINGS).read_text())
    expected = settings.pop("base_sha256")
    if _fingerprint(model, settings) != expected:
        raise ValueError(
            f"the adapters in {str(folder)!r} were trained beside other weights than this model's; load the weights "
            "that they were trained on first."
        )
    tensors = load_file(folder / _TENSORS)
    shapes = {n: tuple(t.shape) for n, t in model.module.state_dict().items()}
    if wrong := [n for n, t in tensors.items() if ".lora_" not in n and shapes.get(n) != tuple(t.shape)]:
        raise ValueError(f"the adapters in {str(folder)!r} do not fit this model: {wrong[:3]} have another shape.")
    _attach(model, settings)
    model.module.load_state_dict(tensors, strict=False)
    model.is_trained_ = True
