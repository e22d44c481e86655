"""Files written complete or not at all, and safe readers of pickle, torch, YAML and JSON."""

from __future__ import annotations

from scvi_tahoe.files._atomic import atomic_folder, atomic_write, atomic_write_text, remove_partial, remove_path
from scvi_tahoe.files._limits import MALFORMED, MEGABYTE, UnsafeFileError, member, one_line, reading, verify_size
from scvi_tahoe.files._pickle_files import read_pickle
from scvi_tahoe.files._torch_files import checksums, read_torch, verify_finite, verify_tensor
from scvi_tahoe.files._yaml_files import read_json, read_yaml
