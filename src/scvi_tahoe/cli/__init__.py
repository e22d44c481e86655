"""The command `scvi-tahoe`: a thin layer over functions of the package, which are imported inside each command."""

from scvi_tahoe.cli._app import app, main

__all__ = ["app", "main"]
