"""The command `scvi-tahoe`: thin doors to functions of the package."""

from scvi_tahoe.cli._app import app, main

__all__ = [
    "app",
    "main",
]
