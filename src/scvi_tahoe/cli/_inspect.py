from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._mistakes import one_line_mistakes

__all__ = ["inspect"]


def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a model, in arc-state's format or an export of ours.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Which checkpoint of a folder in arc-state's format.", show_default="the best")
    ] = None,
) -> None:
    """Show what a model's folder holds, without running code from its files."""
    with one_line_mistakes():
        from scvi_tahoe.pretrained import inspect_folder

        typer.echo(inspect_folder(folder, checkpoint))
