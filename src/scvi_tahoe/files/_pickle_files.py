"""Pickles of model folders (``var_dims.pkl``, ``*_onehot_map.pkl``), read by an unpickler that knows six names.

A name outside the list ends the reading; nothing is imported and nothing called. See "Restricting Globals" in the
documentation of Python's ``pickle``. Tensors come out as numpy vectors. A pickle is a program: its effects
are read off its operations before any of them is executed.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.files._limits import MEGABYTE, UnsafeFileError, reading
from scvi_tahoe.files._plain_values import NUMPY_SCALAR_MODULES, PlainDtype, plain_bytes, plain_scalar, verify_expanded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LIMIT = 2_000 * MEGABYTE
_DTYPES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Bool": "?"}
_STORAGE_DTYPES = {f"{kind}Storage": dtype for kind, dtype in _DTYPES.items()}
MAX_OPERATIONS = 2_000_000
#: Values that tuples may stand for through references to each other. Hashing one visits all of them.
_MAX_REPEATED = 3_000_000
_TUPLES = frozenset({"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_REMEMBERS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_RECALLS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MARK = pickletools.markobject
#: By operation: whether it takes everything down to a mark, how many it takes below that, which it puts are marks.
_EFFECTS = {
    op.name: (
        _MARK in op.stack_before,
        op.stack_before.index(_MARK) if _MARK in op.stack_before else len(op.stack_before),
        tuple(kind is _MARK for kind in op.stack_after),
    )
    for op in pickletools.opcodes
}


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle made of dicts, lists, strings, numbers and vectors."""
    with reading(path, _LIMIT):
        data = path.read_bytes()
        verify_pickle(data)
        content = _PlainUnpickler(data).load()
        verify_expanded(content)
    return content


class _Call:
    """A callable without attributes, made anew for each file: a forged pickle has nothing lasting to write to."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Call(_mapping),
            ("numpy", "dtype"): _Call(PlainDtype),
            ("_codecs", "encode"): _Call(plain_bytes),
            ("torch._utils", "_rebuild_tensor_v2"): _Call(_vector),
            ("torch.storage", "_load_from_bytes"): _Call(self._storage),
            **{(module, "scalar"): _Call(plain_scalar) for module in NUMPY_SCALAR_MODULES},
        }
        self._storages: dict[bytes, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise UnsafeFileError(f"it refers to {module}.{name}, which plain data never need.") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafeFileError("it refers to objects outside of itself.")

    def _storage(self, data: bytes) -> np.ndarray:
        # The peer pickles every row of an identity matrix with the whole matrix; the copies are identical.
        if data not in self._storages:
            self._storages[data] = _read_storage(data)
        return self._storages[data]


class _StorageUnpickler(pickle.Unpickler):
    """Reads the description of one storage: a persistent id ``('storage', type, key, location, numel, view)``."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise UnsafeFileError(f"a tensor refers to {module}.{name}.")

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise UnsafeFileError("a tensor refers to something that is not a storage.")
        return pid


def _read_storage(data: bytes) -> np.ndarray:
    """Return the numbers in what ``torch.save`` (old format) writes for a single storage.

    The format: pickles of a magic number, a protocol version, system information, the storage's description and its
    key; then the number of elements as an int64 and the elements.
    """
    if not isinstance(data, bytes):
        raise UnsafeFileError("a tensor's storage is not made of bytes.")
    stream = io.BytesIO(data)
    header = []
    for _ in range(5):
        verify_pickle(data[stream.tell() :])
        header.append(_StorageUnpickler(stream).load())
    description, keys = header[3], header[4]
    if not isinstance(description, tuple) or not isinstance(keys, list) or len(keys) != 1:
        raise UnsafeFileError("a tensor is not made of exactly one storage.")
    dtype = np.dtype(description[1])
    n_elements = int.from_bytes(stream.read(8), "little", signed=True)
    raw = data[stream.tell() :]
    if n_elements != description[4] or len(raw) != n_elements * dtype.itemsize:
        raise UnsafeFileError(f"a tensor claims {n_elements} elements and comes with {len(raw)} bytes.")
    return np.frombuffer(raw, dtype=dtype)


def _mapping(*pairs: Any) -> dict[Any, Any]:
    """Return a plain dict: one that keeps its order and has no attributes that a file could set."""
    return dict(*pairs)


def _vector(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Return one contiguous row of a storage. It shares the storage's memory, so that many vectors cost nothing."""
    if not isinstance(storage, np.ndarray) or not isinstance(offset, int) or len(size) != 1 or tuple(stride) != (1,):
        raise UnsafeFileError("a tensor is not a contiguous vector.")
    if offset < 0 or size[0] < 0 or offset + size[0] > storage.size:
        raise UnsafeFileError(f"a vector of {size[0]} elements reaches beyond its storage of {storage.size}.")
    return storage[offset : offset + size[0]]


def verify_pickle(data: bytes, *, limit: int = MAX_OPERATIONS) -> None:
    """Refuse what needs no name to do harm: endless programs, absurd memo sizes, tuples of tuples of tuples.

    Only the first program in ``data`` is looked at, as only that one would be carried out.
    """
    stack: list[int | None] = []  # values that each object stands for; None is a mark
    memo: dict[int, int] = {}
    repeated = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if count > limit:
            raise UnsafeFileError(f"the pickle has more than {limit:,} operations.")
        if name.startswith("EXT") or name in ("INST", "DUP"):
            raise UnsafeFileError(f"the pickle uses {name}, which plain data never need.")
        if name in _REMEMBERS:
            place = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if place > count:
                raise UnsafeFileError("the pickle claims a memo larger than itself.")
            memo[place] = _top(stack)
        elif name in _RECALLS:
            size = memo.get(int(argument or 0), 1)
            repeated += size - 1
            if repeated > _MAX_REPEATED:
                raise UnsafeFileError(f"its tuples repeat each other more than {_MAX_REPEATED:,} times.")
            stack.append(size)
        else:
            _step(stack, operation)


def _step(stack: list[int | None], operation: pickletools.OpcodeInfo) -> None:
    """Take from the stack and put on it what an operation does."""
    name = operation.name
    to_mark, below, kinds = _EFFECTS[name]
    total = 1
    if to_mark or (name == "POP" and stack and stack[-1] is None):
        while stack and (size := stack.pop()) is not None:
            total += size
        below = below if to_mark else 0
    for _ in range(below):
        total += (stack.pop() if stack else None) or 1
    for is_mark in kinds:
        stack.append(None if is_mark else total if name in _TUPLES else 1)


def _top(stack: list[int | None]) -> int:
    return (stack[-1] if stack else None) or 1
