"""What a command's user need not read."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_frameworks"]


def quiet_frameworks() -> None:
    """Silence advice of Lightning and scvi-tools, and Lightning's deprecations within itself; other warnings stay.

    What the package logs of a run stands in the output of commands in other words.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "scvi", "scvi_tahoe"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")
    warnings.filterwarnings("ignore", message=".*is deprecated", module="lightning")
    # frozen parts are meant to be in eval mode, and short runs are meant to have few minibatches
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode", module="lightning")
    warnings.filterwarnings("ignore", message="The number of training batches", module="lightning")
