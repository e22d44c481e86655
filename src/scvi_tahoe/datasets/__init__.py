"""Screens that ship with the package, and simulated ones with a known truth."""

from scvi_tahoe.datasets._screens import FewShotTask, norman_k562, papalexi_few_shot, papalexi_thp1
from scvi_tahoe.datasets._simulate import simulate_screen

__all__ = ["FewShotTask", "norman_k562", "papalexi_few_shot", "papalexi_thp1", "simulate_screen"]
