"""The commands of :mod:`scvi_tahoe.study`: fine-tune, study, check and inspect."""

from __future__ import annotations

import logging
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scvi_tahoe.cli._terminal import (
    Checkpoint,
    Json,
    Quiet,
    one_line_errors,
    program,
    quiet_frameworks,
    same_command,
    verify_output,
)

if TYPE_CHECKING:
    from scvi_tahoe.study import RunResult, TahoeRun


def finetune(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the run, or config.yaml in the folder of an earlier one.")
    ],
    folder: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="runs/NAME; RUN_FOLDER-rebuilt for a rebuild")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read data and weights, say what would be done, and write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train, predict and score as a file says, and leave a folder that can be rebuilt.

    \b
    scvi-tahoe finetune run.yaml --dry-run
    scvi-tahoe finetune run.yaml --folder runs/first
    scvi-tahoe finetune runs/first/config.yaml

    The last command repeats an earlier run in a new folder and compares the numbers.
    After Ctrl-C, the same command continues where it stopped.
    """
    quiet_frameworks()
    carry_out(config, folder, dry_run=dry_run, json=json, quiet=quiet)


def carry_out(run: TahoeRun | Path, folder: Path | None, *, dry_run: bool, json: bool, quiet: bool) -> None:
    """Carry out a run or the run of a file, and say what it left and what to do next."""
    logging.getLogger("scvi_tahoe.training._gain").setLevel(logging.INFO)  # why a training ends early
    stopped = f"Stopped. The last validation is kept. Continue with: {same_command()}"
    with one_line_errors(stopped, of_file=isinstance(run, Path)):
        from scvi_tahoe.study import compare_runs, dry_run_text, finetune, is_run, result_text

        if dry_run:
            typer.echo(dry_run_text(run))
            return
        tell = partial(typer.echo, err=json)
        result = finetune(run, folder, progress=not quiet, report=tell)
        typer.echo(result_text(result, as_json=json))
        if isinstance(run, Path) and is_run(run.parent) and run.parent.resolve() != result.folder.resolve():
            tell(str(compare_runs(run.parent, result.folder)))
        report = result.folder / "report.html"
        if result.scores is not None:
            result.scores.to_html(report, title=f"Run {result.folder.name}", command=same_command())
            tell(f"Open {report}")
        tell(_how_to_predict(result))


def _how_to_predict(result: RunResult) -> str:
    """Return the command that predicts with a run: from the file of its cells, or from one of the user's own."""
    from scvi_tahoe.study import TahoeRun

    data, folder = TahoeRun.from_yaml(result.folder / "config.yaml").data, shlex.quote(str(result.folder))
    output = shlex.quote(f"{result.folder.resolve().name}-predicted.h5ad")
    made = data.cell_embedding_components is not None  # which is in no file
    if len(data.files) == 1 and not made and Path(data.files[0]).is_file() and data.modalities is None:
        return f"Next: {program()} predict {folder} {shlex.quote(data.files[0])} -o {output}"
    return (f"To predict from cells of your own, an h5ad file with control cells: "
            f"{program()} predict {folder} YOUR_CELLS.h5ad -o {output}")  # fmt: skip


def study(
    studies: Annotated[
        list[str],
        typer.Argument(help="YAML file of a study, or a shipped one: case_study, recommended, new_context, full_size."),
    ],
    folder: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="studies/NAME")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the rounds, and write nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a series of runs that start from each other, and write a table, figures and a report for the browser.

    \b
    scvi-tahoe study case_study recommended
    scvi-tahoe study my_study.yaml --folder studies/mine

    Finished rounds are kept: after Ctrl-C, the same command continues where it stopped.
    """
    quiet_frameworks()
    with one_line_errors(f"Stopped. Continue with: {same_command()}", of_file=True):
        from scvi_tahoe.study import rounds_text, run_study

        if dry_run:
            typer.echo(rounds_text(*studies))
            return
        result = run_study(*studies, folder=folder, progress=not quiet, report=partial(typer.echo, err=json))
    if json:
        typer.echo(result.table.to_json(orient="index", indent=1))
        return
    shown = result.table.drop(columns=[c for c in result.table if str(c).startswith("published_")])
    typer.echo(f"\n{shown.to_string(float_format='{:.4f}'.format, na_rep='')}\n\n{result.lesson}")
    typer.echo(f"Report: {result.folder / 'report.html'}")


def check(
    config: Annotated[Path, typer.Argument(help="config.yaml of arc-state.")],
    write: Annotated[Path | None, typer.Option(help="Also write it as a run file for `scvi-tahoe finetune`.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Let a run train in another space than it is scored in.")
    ] = False,
    json: Json = False,
) -> None:
    """Translate an arc-state configuration into a run file, and show what arc-state ignores or gets wrong in it.

    The exit code is 1 if the run would be meaningless, for example because it trains in another space than it is scored
    in, and 2 if the file cannot be read.

    \b
    scvi-tahoe check config.yaml
    scvi-tahoe check config.yaml --write run.yaml
    scvi-tahoe check config.yaml --strict --json
    """
    with one_line_errors():
        from json import dumps

        from scvi_tahoe.study import check_config

        verify_output(write, config)
        result = check_config(config)
        typer.echo(dumps(result.to_dict(), indent=1) if json else str(result))
        if write is not None:
            result.write(write)
            again = f"{program()} finetune {shlex.quote(str(write))} --dry-run"
            typer.echo(f"\nWritten: {write}. Read its comments, then: {again}", err=json)
    raise typer.Exit(result.exit_code(strict=strict, allow_mismatch=allow_mismatch))


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run, demo, study, model or scores; or a log, checkpoint, h5ad file, store or table."
        ),
    ],
    checkpoint: Checkpoint = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration of the run of a log.", show_default="the one next to the log")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG or PDF of the log to write.")] = None,
    json: Json = False,
) -> None:
    """Show what a file or folder of this package or of arc-state holds, and what is wrong with a run. No code is run.

    \b
    scvi-tahoe inspect metrics.csv --figure curves.png
    scvi-tahoe inspect runs/first
    scvi-tahoe inspect last.ckpt
    scvi-tahoe inspect ST-Tahoe/
    """
    quiet_frameworks()
    with one_line_errors():
        from scvi_tahoe.pl import save_figure
        from scvi_tahoe.study import inspect_path

        verify_output(figure, path, config)
        found = inspect_path(path, config=config, checkpoint=checkpoint)
        if figure and not found.figure:
            raise ValueError(f"{path} holds no log, so there is no figure to draw.")
        typer.echo(found.to_json() if json else found.text)
        if figure and found.figure:
            save_figure(found.figure, figure, dpi=150)
            typer.echo(f"Figure: {figure}", err=json)
