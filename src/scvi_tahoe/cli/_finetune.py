from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._mistakes import one_line_mistakes
from scvi_tahoe.cli._quiet import quiet_frameworks

__all__ = ["finetune"]


def finetune(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the run, or config.yaml in the folder of an earlier one.")
    ],
    folder: Annotated[
        Path | None, typer.Option(help="Where to write.", show_default="runs/NAME; RUN_FOLDER-rebuilt for a rebuild")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read data and weights, say what would be done, and write nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Train, predict and score as a file says, and leave a folder that can be rebuilt.

    \b
    scvi-tahoe finetune run.yaml --dry-run
    scvi-tahoe finetune run.yaml --folder runs/first
    scvi-tahoe finetune runs/first/config.yaml

    The last rebuilds an earlier run beside it, and compares the numbers. After Ctrl-C the same command goes on where it
    stopped.
    """  # noqa: D301 (typer keeps the lines of a paragraph that begins with this character)
    quiet_frameworks()
    again = f"scvi-tahoe finetune {config}" + (f" --folder {folder}" if folder else "")
    with one_line_mistakes(f"Stopped. The last validation is kept; go on from there with: {again}"):
        from scvi_tahoe.study import compare_runs, dry_run_text, is_run, result_text, run_or_rebuild

        if dry_run:
            typer.echo(dry_run_text(config))
            return
        tell = (lambda line: typer.echo(line, err=True)) if json else typer.echo
        result = run_or_rebuild(config, folder, progress=not quiet, report=tell)
        typer.echo(result_text(result, as_json=json))
        if is_run(config.parent) and config.parent.resolve() != result.folder.resolve():
            tell(str(compare_runs(config.parent, result.folder)))
