"""Checkpoints and maps in torch's zip format: weights-only, memory-mapped, checked before and after.

``torch.load(weights_only=True)`` runs no code of the file. On top of it this module refuses the old formats, compressed
or overlapping records (zip bombs), tensors larger than what lies behind them, and weights whose checksum is wrong.
Memory mapping leaves the optimizer state on disk.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from scvi_tahoe.files._limits import MEGABYTE, UnsafeFileError, reading
from scvi_tahoe.files._pickle_files import MAX_OPERATIONS, verify_pickle
from scvi_tahoe.files._plain_values import NUMPY_SCALAR_MODULES, PlainDtype, plain_scalar, verify_expanded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

_LIMIT = 200_000 * MEGABYTE
_PICKLE_LIMIT = 100 * MEGABYTE
#: Of the archive's directory: room for half a million records with the names torch gives them.
_DIRECTORY_LIMIT = 50 * MEGABYTE
_MAX_CLASSES = 100
_FLOATS = ("float32", "float64", "float16", "bfloat16")

_ALLOWED: list[Any] = [(plain_scalar, f"{module}.scalar") for module in NUMPY_SCALAR_MODULES]
_ALLOWED.append((PlainDtype, "numpy.dtype"))


def read_torch(path: Path, *, limit: int = _LIMIT, verify: bool = False) -> Any:
    """Return the content of a file written by ``torch.save``; tensors are mapped into memory, not read.

    With ``verify`` the file is read once to compare every record with its checksum.
    """
    import torch

    with reading(path, limit):
        verify_archive(path)
        if verify:
            verify_records(path)
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        verify_expanded(content)
    return content


class _Placeholder:
    """Stands for an object of a class that is not imported; it keeps nothing and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _empty_mapping(*_: object) -> dict[Any, Any]:
    return {}


def read_torch_around_classes(path: Path, keys: Sequence[str], *, limit: int = _LIMIT) -> dict[str, Any]:
    """Return some entries of a checkpoint that also holds objects of classes that plain data have no need of.

    Each such class is replaced by an empty placeholder: none is imported, and none of its code is run. Placeholders in
    the entries are left out. Modules of the operating system are refused nevertheless, by torch itself.
    """
    import torch

    with reading(path, limit):
        verify_archive(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        if len(names) > _MAX_CLASSES:
            raise UnsafeFileError(f"it refers to {len(names)} classes.")
        inert: list[Any] = [
            (_empty_mapping if name == "collections.defaultdict" else type("Placeholder", (_Placeholder,), {}), name)
            for name in names
        ]
        with torch.serialization.safe_globals(inert):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict):
            raise UnsafeFileError("it does not hold a mapping of names to values.")
        entries = {key: _without_placeholders(content[key]) for key in keys if key in content}
        verify_expanded(entries)
    return entries


def _without_placeholders(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return None if isinstance(entry, _Placeholder) else entry
    return {key: value for key, value in entry.items() if not isinstance(value, _Placeholder)}


def checksums(path: Path) -> set[tuple[int, int]]:
    """Return size and CRC-32 of every record of the archive, as its directory states them."""
    with zipfile.ZipFile(path) as archive:
        return {(info.file_size, info.CRC) for info in archive.infolist()}


def verify_tensor(name: str, tensor: object, known: set[tuple[int, int]] | None = None) -> Tensor:
    """Return a dense float tensor if it fills its storage, whose bytes are compared with ``known`` (`checksums`)."""
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise UnsafeFileError(f"{name} is not an ordinary tensor.")
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _FLOATS or tensor.is_nested or not tensor.is_contiguous():
        raise UnsafeFileError(f"{name} ({kind}) is not a contiguous tensor of 16- to 64-bit floating-point numbers.")
    if tensor.numel() == 0 or any(size > 2**31 for size in tensor.shape):
        raise UnsafeFileError(f"{name} has the implausible shape {tuple(tensor.shape)}.")
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.element_size() > storage.nbytes():
        raise UnsafeFileError(f"{name} claims more numbers than the file holds.")
    if known is not None:
        raw = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if (storage.nbytes(), zlib.crc32(raw)) not in known:
            raise UnsafeFileError(f"{name} does not match its checksum; copy or download the damaged file again.")
    return tensor


def verify_finite(name: str, tensor: Tensor) -> None:
    """Raise :class:`UnsafeFileError` if a number of a tensor is not finite."""
    if not math.isfinite(float(tensor.sum())) and not bool(tensor.isfinite().all()):
        raise UnsafeFileError(f"{name} holds values that are not finite; the training diverged or the file is damaged.")


def verify_records(path: Path) -> None:
    """Read every record of the archive and compare it with the checksum in its directory."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            with archive.open(record) as stream:
                try:
                    while stream.read(4 * MEGABYTE):
                        pass
                except zipfile.BadZipFile:
                    raise UnsafeFileError(f"its record {record.filename!r} does not match its checksum.") from None


def verify_archive(path: Path, *, pickle_limit: int = _PICKLE_LIMIT, max_operations: int = MAX_OPERATIONS) -> None:
    """Refuse an archive that torch would not write; ``max_operations`` may be those of its pickle."""
    if not zipfile.is_zipfile(path):
        raise UnsafeFileError("it is not in torch's zip format (damaged, cut short, or older than PyTorch 1.6).")
    _verify_directory(path)
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = {record.filename for record in records}
        if len(names) < len(records):
            raise UnsafeFileError("it holds two records of the same name.")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise UnsafeFileError("it holds compressed records, which torch never writes.")
            if record.filename.startswith("/") or ".." in record.filename.split("/"):
                raise UnsafeFileError(f"it holds a record named {record.filename!r}.")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise UnsafeFileError("its records claim more bytes than the file has.")
        for record in records:
            if record.filename.endswith("data.pkl"):
                if record.file_size > pickle_limit:
                    raise UnsafeFileError(f"its index has {record.file_size:,} bytes.")
                verify_pickle(archive.read(record), limit=max_operations)


def _verify_directory(path: Path) -> None:
    """Refuse an archive whose list of records alone would fill the memory, before anything reads that list.

    The last bytes of a zip file say how long its directory is; where 32 bits are too few, a second record does.
    """
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 65_600))
        end = stream.read()
    place, wide = end.rfind(b"PK\x05\x06"), end.rfind(b"PK\x06\x06")
    sizes = [struct.unpack_from("<I", end, place + 12)[0]] if 0 <= place <= len(end) - 22 else []
    if sizes == [0xFFFFFFFF]:
        sizes = [struct.unpack_from("<Q", end, wide + 40)[0]] if 0 <= wide <= len(end) - 56 else []
    if not sizes or sizes[0] > _DIRECTORY_LIMIT:
        raise UnsafeFileError("its directory is damaged, or too large for a file of torch's.")
