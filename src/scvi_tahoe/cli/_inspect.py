from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._mistakes import one_line_mistakes

__all__ = ["inspect"]


def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a model in arc-state's format.")],
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint file inside it.", show_default="the best")] = None,
) -> None:
    """Show what a folder in arc-state's format holds, without running code from its files."""
    with one_line_mistakes():
        from scvi_tahoe.pretrained import read_arc_folder

        typer.echo(str(read_arc_folder(folder, checkpoint=checkpoint).report))
