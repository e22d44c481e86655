"""Preset ``"quick"``: means, discrimination and diagnostics in about a second."""

from __future__ import annotations

from scvi_tahoe.evaluate._presets import PRESETS, Preset

PRESETS.register("quick", Preset())
