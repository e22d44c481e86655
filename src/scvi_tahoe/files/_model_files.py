"""The file of a model that scvi-tools saved (``model.pt``), read without running anything of it.

scvi-tools opens it as a pickle. Here it is looked at first: the pickle may refer to tensors, plain values and numpy
arrays of numbers and text, whose description must be one that numpy itself writes. Then scvi-tools opens the same file
while torch is told to rebuild nothing else.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scvi_tahoe.files._limits import UnsafeFileError, reading
from scvi_tahoe.files._plain_values import NUMPY_SCALAR_MODULES, PlainDtype, plain_scalar, verify_expanded
from scvi_tahoe.files._torch_files import verify_archive, verify_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LIMIT = 200_000_000_000
#: The registry holds the table of perturbation embeddings: 20,000 rows of 5,120 numbers are 0.8 GB as pickled text.
_PICKLE_LIMIT = 4_000_000_000
_MAX_VALUES = 50_000_000
_PARTS = ("model_state_dict", "var_names", "attr_dict")
_PLAIN = (str, int, float, bool, type(None))
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def verify_model_file(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """Refuse a ``model.pt`` that holds more than tensors, plain values and arrays of numbers or text.

    Parameters
    ----------
    path
        The file.
    verify
        Whether to compare every record with its checksum as well, for which the whole file is read.

    Returns
    -------
    What the model keeps in addition to its weights. Arrays are left out of it.

    Raises
    ------
    UnsafeFileError
        If the file is damaged, or refers to anything else. Nothing of it was run.
    """
    import torch

    try:
        with reading(path, _LIMIT):
            verify_archive(path, pickle_limit=_PICKLE_LIMIT, max_operations=_MAX_VALUES)
            if verify:
                verify_records(path)
            with torch.serialization.safe_globals(_STAND_INS):
                content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            verify_expanded(content, limit=_MAX_VALUES)
            if not isinstance(content, dict) or any(name not in content for name in _PARTS):
                raise UnsafeFileError(f"it does not hold {', '.join(_PARTS)}, as a saved model does.")
            weights, attributes = content["model_state_dict"], content["attr_dict"]
            if not isinstance(weights, dict) or not isinstance(attributes, dict):
                raise UnsafeFileError("its weights or attributes are no mapping of names to values.")
            if not isinstance(attributes.get("registry_"), dict):
                raise UnsafeFileError("its registry is not a mapping of names to values.")
            _verify_weights(weights)
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"{error} Nothing of it was run. A model that you made yourself is read without this file where you "
            "export() it with the version that wrote it: TahoeST.from_pretrained reads that folder."
        ) from None
    return attributes


def _verify_weights(weights: dict[str, Any]) -> None:
    import torch

    for name, tensor in weights.items():
        if name == "pyro_param_store":
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_nested:
            raise UnsafeFileError(f"{name} is not an ordinary tensor.")
        if tensor.untyped_storage().nbytes() < (_extent(tensor) + tensor.storage_offset()) * tensor.element_size():
            raise UnsafeFileError(f"{name} claims more numbers than the file holds.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UnsafeFileError(f"{name} holds values that are not finite; the training diverged or it is damaged.")


def _extent(tensor: Any) -> int:
    """Elements from the first of a tensor to its last, in its storage."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


@contextmanager
def only_weights() -> Iterator[None]:
    """Let every ``torch.load`` inside rebuild tensors, plain values and numpy arrays only, whatever it is told."""
    import torch

    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_REAL):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


class _ArrayDtype(PlainDtype):
    """A dtype whose whole state is what numpy writes for it; a forged one lets numpy read beyond its memory."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        self.is_object = code == "O8"
        super().__init__("i8" if self.is_object else code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        known = np.dtype("O") if self.is_object else np.dtype(f"{order if order == '>' else '<'}{self.code}")
        if state != known.__reduce__()[2]:
            raise UnsafeFileError("it describes a numpy dtype in another way than numpy does.")
        self.numpy = known


class _Array:
    """An array as a pickle describes it, of which only the description is kept."""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafeFileError("it describes a numpy array in another way than numpy does.")
        version, shape, dtype, fortran, values = cast("tuple[Any, ...]", state)
        known = isinstance(dtype, _ArrayDtype) and hasattr(dtype, "numpy")
        if not _is_shape(shape) or version != 1 or not known or not isinstance(fortran, bool):
            raise UnsafeFileError("it describes a numpy array in another way than numpy does.")
        size = math.prod(shape)
        if dtype.is_object:
            fits = isinstance(values, list) and len(values) == size and all(isinstance(v, _PLAIN) for v in values)
        else:
            fits = isinstance(values, bytes) and len(values) == size * dtype.numpy.itemsize
        if not fits:
            raise UnsafeFileError(f"a numpy array of shape {shape} comes with other values than its description says.")


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**40 for n in shape)


def _new_array(kind: object, shape: object, code: object) -> _Array:
    if kind is not _Array or shape != (0,) or code != b"b":
        raise UnsafeFileError("it describes a numpy array in another way than numpy does.")
    return _Array()


def _new_mapping(kind: object = dict) -> dict:
    if kind is not dict:
        raise UnsafeFileError("it holds a mapping that calls something for unknown keys.")
    return {}


def _scalar(dtype: _ArrayDtype, raw: bytes | str) -> object:
    if getattr(dtype, "is_object", True):
        raise UnsafeFileError("a numpy scalar is not made of a plain dtype and bytes.")
    return plain_scalar(dtype, raw)


_BUILTINS = ("builtins", "__builtin__")
_STAND_INS: list[Any] = [
    (_ArrayDtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_new_mapping, "collections.defaultdict"),
    *((dict, f"{module}.dict") for module in _BUILTINS),
    *((bytes, f"{module}.bytes") for module in _BUILTINS),
    *((_new_array, f"{module}._reconstruct") for module in NUMPY_SCALAR_MODULES),
    *((_scalar, f"{module}.scalar") for module in NUMPY_SCALAR_MODULES),
]
#: the same names as numpy and Python know them, for a file that was verified
_REAL: list[Any] = [
    *(np.dtype, np.ndarray),
    (_new_mapping, "collections.defaultdict"),
    *((kind, f"{module}.{kind.__name__}") for kind in (dict, bytes) for module in _BUILTINS),
    *((np.empty(0).__reduce__()[0], f"{module}._reconstruct") for module in NUMPY_SCALAR_MODULES),
    *((np.float32(0).__reduce__()[0], f"{module}.scalar") for module in NUMPY_SCALAR_MODULES),
    *{type(np.dtype(code)) for code in ("O", "?", "U1", "S1", *np.typecodes["AllInteger"], "e", "f", "d")},
]
