from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._mistakes import one_line_mistakes

__all__ = ["inspect"]


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="metrics.csv, folder of a run or of several logs, checkpoint, or folder of a model."),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Which checkpoint of a folder in arc-state's format.",
            show_default="final, last, best or the highest step",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration of the run of a log.", show_default="the one beside the log")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG or PDF of the log to write.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Show what a run left and what is wrong with it, or what a model's folder holds; no code of a file is run.

    \b
    scvi-tahoe inspect metrics.csv --figure curves.png
    scvi-tahoe inspect runs/first
    scvi-tahoe inspect last.ckpt
    scvi-tahoe inspect ST-Tahoe/
    """  # noqa: D301 (typer keeps the lines of a paragraph that begins with this character)
    with one_line_mistakes():
        from scvi_tahoe.study import inspect_path

        found = inspect_path(path, config=config, checkpoint=checkpoint)
        if figure is not None and found.figure is None:
            raise ValueError(f"{path} holds no log, so there is no figure to draw.")
        typer.echo(found.to_json() if json else found.text)
        if figure is not None and found.figure is not None:
            found.figure.savefig(figure, dpi=150)
            typer.echo(f"Figure: {figure}", err=json)
