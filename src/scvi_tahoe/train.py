"""The name of :mod:`scvi_tahoe.training` in version 0.1."""

from __future__ import annotations

import sys

from scvi_tahoe import training

sys.modules[__name__] = training
