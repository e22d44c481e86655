"""Files written whole or not at all, and safe readers of untrusted ones."""

from scvi_tahoe.files._atomic import atomic_folder

__all__ = ["atomic_folder"]
