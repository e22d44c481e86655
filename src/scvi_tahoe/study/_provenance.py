"""On what machine, with which releases and on which data a run was made."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_tahoe.study._run_config import TahoeRun

__all__ = ["PACKAGES", "provenance"]

#: Packages whose release can change the numbers of a run.
PACKAGES = (
    "scvi-tahoe", "scvi-tools", "torch", "lightning", "numpy", "scipy", "pandas", "anndata", "scikit-learn",
    "cell-eval", "pdex",
)  # fmt: skip


def provenance(run: TahoeRun, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return releases, machine, seed and the fingerprint of the data."""
    import torch

    return {
        "seed": run.seed,
        "versions": {"python": platform.python_version(), **installed()},
        "machine": {
            "processor": platform.machine(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            # sums over several threads are rounded otherwise than over one
            "threads": torch.get_num_threads(),
        },
        "data": fingerprint,
    }


def installed() -> dict[str, str]:
    """Releases of :data:`PACKAGES`."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
