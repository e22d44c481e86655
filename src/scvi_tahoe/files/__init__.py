"""Files written complete or not at all, and safe readers of pickle, torch, YAML and JSON."""

from __future__ import annotations

from scvi_tahoe.files._atomic import (
    atomic_folder,
    atomic_write,
    atomic_write_text,
    remove_partial,
    remove_path,
    restore,
    updated_folder,
)
from scvi_tahoe.files._cell_files import damaged, read_h5ad, verify_hdf5, verify_zarr
from scvi_tahoe.files._checksums import CHECKSUMS, file_sha256, verify_checksums, write_checksums
from scvi_tahoe.files._limits import MALFORMED, MEGABYTE, UnsafeFileError, member, one_line, reading, verify_size
from scvi_tahoe.files._lock import LOCK, FolderInUseError, locked
from scvi_tahoe.files._model_files import only_weights, verify_model_file
from scvi_tahoe.files._pickle_files import read_pickle
from scvi_tahoe.files._space import make_folder, verify_space
from scvi_tahoe.files._text_files import read_csv, verify_text
from scvi_tahoe.files._torch_files import checksums, read_torch, read_torch_around_classes, verify_finite, verify_tensor
from scvi_tahoe.files._yaml_files import parse_yaml, read_json, read_yaml
