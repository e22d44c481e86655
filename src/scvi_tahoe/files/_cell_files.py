"""Cells in HDF5 and zarr: files that refer to nothing outside of themselves and name no codec that runs code."""

from __future__ import annotations

import json
import mmap
import os
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scvi_tahoe.files._checksums import verify_checksums
from scvi_tahoe.files._limits import MEGABYTE, UnsafeFileError, one_line, verify_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

_LIMIT = 10_000_000 * MEGABYTE
_MAX_DEPTH = 40
#: bytes of an array from which they are compared with those in the file, and by how much these may be compressed
_LARGE, _COMPRESSION = 64 * MEGABYTE, 1100
_MAX_NODES = 200_000
#: How HDF5 stores a text of any length: its bytes, and where in the file they are.
_TEXT = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
#: How HDF5 stores the texts themselves: heaps of a header and of objects, each with an index and its number of bytes.
_HEAP, _HEAP_HEADER, _HEAP_OBJECT = b"GCOL\x01\0\0\0", struct.Struct("<8xQ"), struct.Struct("<H6xQ")
#: bytes of a file up to which its heaps are looked for
_SEARCHED = 2_000 * MEGABYTE
_DESCRIPTIONS = (".zarray", ".zmetadata", "zarr.json")
_DESCRIPTION_LIMIT = 64 * MEGABYTE
#: Codecs that rebuild numbers and text; ``pickle``, which numcodecs has as well, runs what it reads.
_CODECS = frozenset(
    "blosc bytes bz2 crc32 crc32c adler32 fletcher32 jenkins_lookup3 delta fixedscaleoffset astype bitround gzip "
    "lz4 lzma packbits sharding_indexed shuffle transpose vlen-array vlen-bytes vlen-utf8 zlib zstd "
    "default string numcodecs.blosc numcodecs.zstd numcodecs.zlib numcodecs.gzip numcodecs.shuffle numcodecs.delta "
    "numcodecs.lz4 numcodecs.crc32 numcodecs.crc32c".split()
)
_NAMES_OF_CODECS = ("codecs", "filters", "compressor", "index_codecs", "object_codec")


def verify_hdf5(path: Path) -> None:
    """Refuse an HDF5 file that is damaged, or that reads other files when it is read.

    Raises
    ------
    UnsafeFileError
        If it is not an HDF5 file, is damaged, or has links, storage or virtual data in other files.
    """
    with damaged(path):
        verify_size(path, _LIMIT)
        with h5py.File(path, "r") as file:
            if file.id.get_create_plist().get_sizes()[1] == 8 and path.stat().st_size <= _SEARCHED:
                _verify_heaps(path)
            _walk(file, path)


def _walk(root: h5py.Group, path: Path) -> None:
    n_seen, seen = 0, {root.id}
    to_do = [(root, 0)]
    while to_do:
        group, depth = to_do.pop()
        if depth > _MAX_DEPTH:
            raise UnsafeFileError(f"its groups are nested more than {_MAX_DEPTH} deep.")
        for name in group:
            n_seen += 1
            if n_seen > _MAX_NODES:
                raise UnsafeFileError(f"it holds more than {_MAX_NODES:,} groups and arrays.")
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise UnsafeFileError(f"{group.name}/{name} is a link to another file, {link.filename[:80]!r}.")
            element = group[name]
            if isinstance(element, h5py.Dataset):
                _verify_dataset(element)
                _verify_texts(element, path)
            elif isinstance(element, h5py.Group):
                if element.id in seen:  # which a reader would follow without an end
                    raise UnsafeFileError(f"the group {element.name} has several names, or holds itself.")
                seen.add(element.id)
                to_do.append((element, depth + 1))


def _verify_dataset(dataset: h5py.Dataset) -> None:
    if dataset.external:
        raise UnsafeFileError(f"{dataset.name} is stored in another file, {str(dataset.external[0][0])[:80]!r}.")
    stored, claimed = dataset.id.get_storage_size(), int(dataset.nbytes)
    if not dataset.is_virtual and claimed > _LARGE and stored * _COMPRESSION < claimed:
        raise UnsafeFileError(f"{dataset.name} claims {claimed:,} bytes and holds {stored:,} of them.")
    if dataset.is_virtual and any(source.file_name != "." for source in dataset.virtual_sources()):
        raise UnsafeFileError(f"{dataset.name} is put together from other files.")


def _verify_texts(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse texts longer than their file, as HDF5 reserves memory for them before it looks for them."""
    text, offset = h5py.check_string_dtype(dataset.dtype), dataset.id.get_offset()
    stored = (dataset.size or 0) * _TEXT.itemsize  # an empty dataset has no size
    if text is None or text.length is not None or offset is None or dataset.id.get_storage_size() != stored:
        return  # compressed, in chunks, or not written
    with path.open("rb") as stream:
        stream.seek(offset)
        lengths = np.frombuffer(stream.read(stored), _TEXT)["length"]
    claimed, there = int(lengths.sum(dtype=np.int64)), path.stat().st_size
    if claimed > there:
        raise UnsafeFileError(f"{dataset.name} claims {claimed:,} bytes of text; the whole file has {there:,}.")


def _verify_heaps(path: Path) -> None:
    """Refuse heaps of texts in which HDF5 would go round without an end: free space of no bytes, sizes past the end."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_HEAP)
        while at >= 0:
            (size,) = _HEAP_HEADER.unpack_from(content, at) if at + 16 <= len(content) else (0,)
            here, end = at + _HEAP_HEADER.size, at + size
            while here + _HEAP_OBJECT.size <= end <= len(content):
                index, length = _HEAP_OBJECT.unpack_from(content, here)
                step = _HEAP_OBJECT.size + -(-length // 8) * 8 if index else length
                if not 0 < step <= end - here:
                    raise UnsafeFileError(f"its texts are damaged at byte {here:,}.")
                here += step
            at = content.find(_HEAP, at + 8)


def verify_zarr(folder: Path, *, verify: bool = True) -> None:
    """Refuse a zarr folder with links that lead out of it, or with a codec that runs what it reads.

    With ``verify``, files are compared with their checksums, where there are any.

    Raises
    ------
    UnsafeFileError
        If there is such a link or codec, or a description is damaged.
    """
    root = folder.resolve()
    if verify:
        verify_checksums(folder)
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise UnsafeFileError(f"{path} is a link that leads out of {folder}; copy the file itself there.")
        for name in _DESCRIPTIONS:
            if name in names:
                path = Path(place, name)
                with damaged(path):
                    verify_size(path, _DESCRIPTION_LIMIT)
                    _verify_codecs(json.loads(path.read_text("utf-8")))


def _verify_codecs(content: Any) -> None:
    """Look for codecs at any depth of a description, whichever version of zarr it is of."""
    to_do = [content]
    while to_do:
        item = to_do.pop()
        if isinstance(item, dict):
            for name, value in item.items():
                if name in _NAMES_OF_CODECS:
                    _verify_named(value)
            to_do.extend(item.values())
        elif isinstance(item, list):
            to_do.extend(item)


def _verify_named(codecs: Any) -> None:
    for codec in codecs if isinstance(codecs, list) else [codecs]:
        name = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
        if isinstance(name, str) and name not in _CODECS:
            raise UnsafeFileError(f"it is written with the codec {name[:40]!r}, which is not used for cells.")


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on a file of cells into one :class:`UnsafeFileError`; a missing file is not."""
    try:
        yield
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path} was refused: {error}" if str(path) not in str(error) else str(error)) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # noqa: BLE001  anndata has errors of its own, which are private
        kind = "h5ad file" if path.suffix == ".h5ad" else path.suffix.removeprefix(".") or "folder of cells"
        raise UnsafeFileError(f"{path} is not a readable {kind}: {one_line(error)}") from None


def read_h5ad(path: str | Path, *, backed: bool = False) -> AnnData:
    """Return the cells in an h5ad file, after :func:`verify_hdf5`.

    Parameters
    ----------
    path
        The file.
    backed
        Whether expression stays on disk.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UnsafeFileError
        If it is not an h5ad file, is damaged, or refers to other files.
    """
    import anndata

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; an h5ad file with cells is expected.")
    verify_hdf5(path)
    with damaged(path):
        return anndata.read_h5ad(path, backed="r" if backed else None)
