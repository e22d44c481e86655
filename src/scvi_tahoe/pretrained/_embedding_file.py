"""Where embeddings of cells in a file go: a copy of that file, or a matrix by itself, written block by block."""

from __future__ import annotations

import math
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scvi_tahoe.data import is_store, record_files
from scvi_tahoe.files import atomic_write, verify_space, write_checksums

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: ``uns`` key that says how embeddings were made, by their key in ``obsm``
PROVENANCE = "scvi_tahoe_embedding"
_ROWS = 256  # of a chunk


@dataclass
class EmbeddingFile:
    """A file that is being written."""

    matrix: Any  #: ``matrix[start:stop] = rows``
    provenance: Mapping[str, Any]  #: plain values, set before the file is closed


def verify_output(data: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse a place that cannot take the embeddings of cells in ``data``.

    Raises
    ------
    FileExistsError
        If there is something, and it may not be replaced.
    ValueError
        If the output is neither a matrix (``.npy``) nor in the format of the data.
    """
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; give overwrite=True to replace it, or another name.")
    wanted = ".zarr" if data.is_dir() else ".h5ad"
    if output.suffix not in (".npy", wanted):
        raise ValueError(
            f"{output.name} cannot be written: the copy of {data.name} with its embeddings is a {wanted}, and .npy "
            "holds the embeddings alone."
        )


@contextmanager
def embedding_file(data: Path, output: Path, key: str, shape: tuple[int, int]) -> Iterator[EmbeddingFile]:
    """Yield a file with room for embeddings, which takes its place when the block ends without an error."""
    copied = 0 if output.suffix == ".npy" else sum(p.stat().st_size for p in (data, *data.rglob("*")) if p.is_file())
    verify_space(output, copied + 4 * math.prod(shape), "the embeddings, with the cells they are written beside,")
    with atomic_write(output) as partial, ExitStack() as stack:
        if output.suffix == ".npy":
            matrix = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            yield EmbeddingFile(matrix, {})
            matrix.flush()
            return
        if data.is_dir():
            import zarr

            shutil.copytree(data, partial)
            root: Any = zarr.open_group(partial, mode="r+", use_consolidated=False)
        else:
            shutil.copyfile(data, partial)
            root = stack.enter_context(h5py.File(partial, "r+"))
        file = EmbeddingFile(_room(root, key, shape), {})
        yield file
        _add_provenance(root, key, file.provenance)
        if data.is_dir():
            _refresh(partial, root)


def _room(root: Any, key: str, shape: tuple[int, int]) -> Any:
    if "obsm" not in root:
        root.create_group("obsm").attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    obsm = root["obsm"]
    if key in obsm:
        del obsm[key]
    make = obsm.create_dataset if isinstance(obsm, h5py.Group) else obsm.create_array
    matrix = make(key, shape=shape, dtype="float32", chunks=(max(1, min(_ROWS, shape[0])), shape[1]))
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return matrix


def _add_provenance(root: Any, key: str, provenance: Mapping[str, Any]) -> None:
    import anndata.io

    uns = root["uns"] if "uns" in root else {}
    known = anndata.io.read_elem(uns[PROVENANCE]) if PROVENANCE in uns else {}
    if "uns" not in root:
        anndata.io.write_elem(root, "uns", {})
    anndata.io.write_elem(root["uns"], PROVENANCE, {**known, key: dict(provenance)})


def _refresh(folder: Path, root: Any) -> None:
    """Let what a zarr folder says of itself include what was added."""
    import zarr

    if is_store(folder):
        record_files(folder)
        return
    if (folder / ".zmetadata").exists() or "consolidated_metadata" in (folder / "zarr.json").read_text("utf-8"):
        zarr.consolidate_metadata(root.store)
    write_checksums(folder)
