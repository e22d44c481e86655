"""LoRA adapters of a checkpoint, folded into the matrices they adapt (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.files import UnsafeFileError
from scvi_tahoe.pretrained._keys import BACKBONE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["fold_lora", "has_lora"]

_INFIX = f"{BACKBONE}.base_model.model."


def has_lora(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict of Arc's carries adapters."""
    return any(name.startswith(_INFIX) for name in state)


def fold_lora(
    state: Mapping[str, Tensor], alpha: float, *, transposed: bool, check: Callable[[str, Tensor], Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict with ``W + alpha / r * B @ A`` in place of adapters, and the names of the folded matrices.

    Parameters
    ----------
    state
        Arc's state dict with adapters.
    alpha
        The adapters' scale; the rank is read off their shapes.
    transposed
        Matrices are stored input-major (GPT-2), so the update is transposed.
    check
        Called with name and tensor of everything that is read.

    Raises
    ------
    UnsafeFileError
        If an adapter has no partner or no matrix of fitting shape.
    """
    plain, folded = {}, []
    for name, tensor in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            if name.split(".lora_")[0] + ".base_layer.weight" not in state:
                raise UnsafeFileError(f"LoRA adapter {name} adapts no matrix of the checkpoint.")
            continue
        target = name.replace(_INFIX, f"{BACKBONE}.").replace(".base_layer.", ".")
        if name.endswith(".base_layer.weight"):
            stem = name.removesuffix(".base_layer.weight")
            tensor = _folded(state, stem, alpha, transposed=transposed, check=check)
            folded.append(target)
        plain[target] = tensor
    return plain, folded


def _folded(
    state: Mapping[str, Tensor], stem: str, alpha: float, *, transposed: bool, check: Callable[[str, Tensor], Tensor]
) -> Tensor:
    names = {part: f"{stem}.{part}.weight" for part in ("base_layer", "lora_A.default", "lora_B.default")}
    missing = [name for name in names.values() if name not in state]
    if missing:
        raise UnsafeFileError(f"LoRA of {stem} is incomplete: {missing} missing.")
    base, a, b = (check(name, state[name]).float() for name in names.values())
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UnsafeFileError(f"LoRA of {stem} has factors of shapes {tuple(b.shape)} and {tuple(a.shape)}.")
    update = alpha / a.shape[0] * (b @ a)
    update = update.T if transposed else update
    if update.shape != base.shape:
        raise UnsafeFileError(f"LoRA of {stem} has shape {tuple(update.shape)}, its matrix {tuple(base.shape)}.")
    return base + update
