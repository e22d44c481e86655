"""Adapters of a module: attached for a training, kept alone in a folder, put on the same weights again."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors.torch import load_file, save_file

from scvi_tahoe.files import UnsafeFileError, file_sha256, member, read_json, reading, restore, updated_folder
from scvi_tahoe.nn import attach_adapters, linear_layers, merge_adapters, original_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.training._recipe import PlanConfig

#: layers, rank, alpha and seed of attached adapters, as plain values
Adapters: TypeAlias = "dict[str, Any]"

_TENSORS, _SETTINGS = "adapters.safetensors", "adapters.json"
_PREFIX = "network."
_RANK = 8
_LIMIT = 20_000_000_000


def resolve_adapters(
    module: TahoeSTModule, plan: PlanConfig, *, adapters: Adapters | None, pretrained: Sequence[str]
) -> Adapters | None:
    """Adapters that a plan trains, given those that the module carries; nothing is attached yet."""
    if plan.recipe != "lora":
        if adapters is not None:
            raise ValueError(
                f"the model carries adapters, and recipe={plan.recipe!r} trains its weights; call merge_adapters() "
                "first, or go on with recipe='lora'."
            )
        return None
    rank = plan.lora_rank or _RANK
    settings = {"rank": rank, "alpha": plan.lora_alpha or 2.0 * rank, "seed": plan.seed}
    if adapters is not None:
        if differing := [n for n in ("rank", "alpha") if adapters[n] != settings[n]]:
            raise ValueError(
                f"the model carries adapters of rank {adapters['rank']} and alpha {adapters['alpha']:g}, and "
                f"{differing} of this run differ; call merge_adapters() first to start with new ones."
            )
        return adapters
    layers = linear_layers(module.network, {n.removeprefix(_PREFIX) for n in pretrained if n.startswith(_PREFIX)})
    if not layers:
        raise ValueError(
            "recipe='lora' trains adapters beside loaded weights, and this model has none: start from "
            "TahoeST.from_pretrained or TahoeST.load, or take recipe='full'."
        )
    return {"layers": layers, **settings}


def begin_adapters(
    module: TahoeSTModule, plan: PlanConfig, *, adapters: Adapters | None, pretrained: Sequence[str]
) -> tuple[Adapters | None, list[str]]:
    """Attach the adapters of a plan; return them, and the names of the module's parameters with pretrained values."""
    wanted = resolve_adapters(module, plan, adapters=adapters, pretrained=pretrained)
    if wanted is None or adapters is not None:
        return wanted, list(pretrained)
    return wanted, _attach(module, wanted, pretrained)


def _attach(module: TahoeSTModule, adapters: Adapters, pretrained: Sequence[str]) -> list[str]:
    attach_adapters(module.network, **adapters)
    known = set(pretrained)
    return [n for n, _ in module.named_parameters() if original_name(n) in known]


def end_adapters(module: TahoeSTModule, *, adapters: Adapters | None, pretrained: Sequence[str]) -> list[str]:
    """Merge the adapters into the weights, and return the names of the parameters with pretrained values."""
    if adapters is None:
        raise ValueError("the model carries no adapters; train(recipe='lora') attaches them.")
    merge_adapters(module.network)
    return sorted({original_name(n) for n in pretrained if ".lora_" not in n})


def _is_of_base(name: str, adapters: Adapters) -> bool:
    """Whether a parameter of the module is a weight that has adapters."""
    return original_name(name).removeprefix(_PREFIX).rpartition(".")[0] in adapters["layers"] and ".lora_" not in name


def _fingerprint(module: TahoeSTModule, adapters: Adapters) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if _is_of_base(name, adapters):
            digest.update(original_name(name).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_adapters(module: TahoeSTModule, adapters: Adapters | None, folder: Path) -> None:
    """Write the adapters, and what else of the module is not a layer with adapters, into a folder."""
    if adapters is None:
        raise ValueError("the model carries no adapters to save; train(recipe='lora') attaches them.")
    tensors = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items() if not _is_of_base(n, adapters)}
    settings = {**adapters, "base_sha256": _fingerprint(module, adapters)}
    with updated_folder(folder, written=(_TENSORS, _SETTINGS)) as partial:
        save_file(tensors, partial / _TENSORS)
        settings["sha256"] = file_sha256(partial / _TENSORS)
        (partial / _SETTINGS).write_text(json.dumps(settings, indent=1))


def _read_settings(folder: Path) -> Adapters:
    """Return the settings of adapters, after comparing their tensors with their checksum."""
    restore(folder)
    if not (folder / _SETTINGS).is_file() or not (folder / _TENSORS).is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no adapters; save_adapters writes {_SETTINGS} and {_TENSORS}.")
    settings = read_json(member(folder, _SETTINGS))
    checksum = settings.pop("sha256", None)  # absent from version 0.1
    if checksum is not None and checksum != file_sha256(member(folder, _TENSORS)):
        raise UnsafeFileError(f"{_TENSORS} in {folder} does not match its checksum; copy the damaged file again.")
    kinds: dict[str, Any] = {"layers": list, "rank": int, "alpha": (int, float), "seed": int, "base_sha256": str}
    if set(settings) != set(kinds) or any(not isinstance(settings[name], kind) for name, kind in kinds.items()):
        raise UnsafeFileError(f"{_SETTINGS} in {folder} does not say layers, rank and weights of adapters.")
    return settings


def read_adapters(
    module: TahoeSTModule, folder: Path, *, adapters: Adapters | None, pretrained: Sequence[str]
) -> tuple[Adapters, list[str]]:
    """Attach the adapters of a folder; return them, and the names of the module's parameters with pretrained values."""
    if adapters is not None:
        raise ValueError("the model carries adapters already; call merge_adapters() first.")
    settings = _read_settings(folder)
    expected = settings.pop("base_sha256")
    if _fingerprint(module, settings) != expected:
        raise ValueError(
            f"the adapters in {str(folder)!r} were trained beside other weights than this model's; load the weights "
            "that they were trained on first."
        )
    with reading(folder / _TENSORS, _LIMIT):
        tensors = load_file(folder / _TENSORS)
    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    if wrong := [n for n, t in tensors.items() if ".lora_" not in n and shapes.get(n) != tuple(t.shape)]:
        raise ValueError(f"the adapters in {str(folder)!r} do not fit this model: {wrong[:3]} have another shape.")
    known = _attach(module, settings, pretrained)
    module.load_state_dict(tensors, strict=False)
    return settings, known
