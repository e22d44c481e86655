from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._mistakes import one_line_mistakes
from scvi_tahoe.cli._quiet import quiet_frameworks

__all__ = ["study"]


def study(
    studies: Annotated[
        list[str], typer.Argument(help="YAML file of a study, or a shipped one: case_study, recommended.")
    ],
    folder: Annotated[Path | None, typer.Option(help="Where to write.", show_default="studies/NAME")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the rounds, and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Carry out a ladder of runs, each from an earlier one, and write a table, figures and a report for the browser.

    \b
    scvi-tahoe study case_study recommended
    scvi-tahoe study my_study.yaml --folder studies/mine

    Finished rounds are kept: after Ctrl-C the same command goes on where it stopped.
    """  # noqa: D301 (typer keeps the lines of a paragraph that begins with this character)
    quiet_frameworks()
    again = f"scvi-tahoe study {' '.join(studies)}" + (f" --folder {folder}" if folder else "")
    with one_line_mistakes(f"Stopped. Go on from there with: {again}"):
        from scvi_tahoe.study import rounds_text, run_study

        if dry_run:
            typer.echo(rounds_text(*studies))
            return
        tell = (lambda line: typer.echo(line, err=True)) if json else typer.echo
        result = run_study(*studies, folder=folder, progress=not quiet, report=tell)
    if json:
        typer.echo(result.table.to_json(orient="index", indent=1))
        return
    shown = result.table.drop(columns=[c for c in result.table if str(c).startswith("published_")])
    typer.echo(f"\n{shown.to_string(float_format='{:.4f}'.format, na_rep='')}\n\n{result.lesson}")
    typer.echo(f"Report: {result.folder / 'report.html'}")
