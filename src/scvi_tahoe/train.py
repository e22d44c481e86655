"""The name of :mod:`scvi_tahoe.training` in version 0.1."""

from scvi_tahoe.training import *  # noqa: F403
from scvi_tahoe.training import __all__  # noqa: F401
