"""The commands that begin with a file of cells: train on it, or write a run file for it."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from scvi_tahoe.cli._terminal import (
    Json,
    Quiet,
    named_files,
    one_line_errors,
    program,
    quiet_frameworks,
    say_error,
)

if TYPE_CHECKING:
    from scvi_tahoe.study import ScreenLook


def train(  # noqa: PLR0913
    data: Annotated[Path, typer.Argument(help="h5ad file with log1p of normalised counts.")],
    perturbation_key: Annotated[str, typer.Option(help="Column of obs with the perturbations.")],
    control: Annotated[str, typer.Option(help="Label of control cells.")],
    context_key: Annotated[
        str | None, typer.Option(help="Column of obs with cell lines, donors, ...", show_default="a single context")
    ] = None,
    combination_separator: Annotated[
        str | None, typer.Option(help="What separates the parts of combinations, such as +.", show_default="none")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with technical batches.")] = None,
    dose_key: Annotated[str | None, typer.Option(help="Column of obs with doses of drugs.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with expression.", show_default="X")] = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", help="Table of genes or drugs as NAME=FILE; may be repeated.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Weights to start from: a folder, or a name on the hub.", show_default="none")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="h5ad of observed cells to predict and score.", show_default="a tenth of the conditions"),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = 1_000,
    preset: Annotated[str, typer.Option(help="Scores to compute; quick needs no DE tests.")] = "vcc2025",
    folder: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="runs/NAME_OF_DATA")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the data, say what would be done, and write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on your own screen, predict held-out conditions, score them, and write a report for the browser.

    \b
    scvi-tahoe train screen.h5ad --perturbation-key target_gene --control non-targeting
    scvi-tahoe train screen.h5ad --perturbation-key gene --control NT --context-key cell_line --folder runs/first

    The folder holds the model, the prediction, every score and config.yaml, which repeats the run. For more options
    than these, write a run file with scvi-tahoe init and change it. After Ctrl-C, the same command continues where it
    stopped.
    """
    from scvi_tahoe.cli._runs import carry_out

    quiet_frameworks()
    with one_line_errors():
        from scvi_tahoe.study import TahoeRun, look_at_screen

        found = look_at_screen(
            data,
            perturbation_key=perturbation_key,
            control=control,
            context_key=context_key or "",
            combination_separator=combination_separator or "",
            layer=layer,
        )
        _verify_prepared(found)
        files = named_files(table)
        cells = {
            "path": str(data), "perturbation_key": perturbation_key, "control": control, "context_key": context_key,
            "combination_separator": combination_separator, "batch_key": batch_key, "dose_key": dose_key,
            "layer": found.layer,
            "held_out": None if held_out is None else str(held_out),
        }  # fmt: skip
        run = TahoeRun.from_dict(
            {
                "name": data.stem,
                "data": {name: value for name, value in cells.items() if value is not None}
                | ({"embedding_files": files} if files else {}),
                **({"start": {"source": source}} if source else {}),
                **({} if held_out else {"split": found.split}),
                "train": {"max_steps": max_steps},
                "score": {"preset": preset},
                "seed": seed,
            }
        )
        tell = partial(typer.echo, err=json)
        tell(found.text())
        if found.dose_key is not None and dose_key is None:
            tell(f"note: obs[{found.dose_key!r}] may be doses: give --dose-key {found.dose_key} to distinguish them")
    carry_out(run, folder, dry_run=dry_run, json=json, quiet=quiet)
    n_new = (len(found.labels) - 1) * max(len(found.contexts), 1) - found.n_conditions
    if not (dry_run or json or combination_separator) and (table or (found.recurs and n_new)):
        keys = {"perturbation-key": perturbation_key, "control": control, "context-key": context_key,
                "dose-key": dose_key, "layer": found.layer}  # fmt: skip
        given = [word for name, value in keys.items() if value is not None for word in (f"--{name}", value)]
        given += [word for one in table or [] for word in ("--table", one)]
        given += [] if table else ["-n", str(min(20, n_new))]
        typer.echo(f"What to measure next: {program()} plan {shlex.join([str(data), *given])}")


def init(
    data: Annotated[Path, typer.Argument(help="h5ad file of a screen.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run file to write.")] = Path("run.yaml"),
    perturbation_key: Annotated[
        str | None, typer.Option(help="Column of obs with the perturbations.", show_default="found by its labels")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Label of control cells.", show_default="found by its name")
    ] = None,
    context_key: Annotated[
        str | None, typer.Option(help="Column of obs with contexts.", show_default="found by its name")
    ] = None,
) -> None:
    """Look at a screen and write a run file for it, with every choice explained in comments.

    \b
    scvi-tahoe init screen.h5ad
    scvi-tahoe init screen.h5ad -o first.yaml --perturbation-key drug --control DMSO
    """
    with one_line_errors():
        from scvi_tahoe.study import look_at_screen, write_new_run

        found = look_at_screen(data, perturbation_key=perturbation_key, control=control, context_key=context_key)
        _verify_prepared(found)
        write_new_run(found, output)
    typer.echo(found.text())
    typer.echo(f"{output} written. Read it, then: {program()} finetune {shlex.quote(str(output))} --dry-run")


def _verify_prepared(found: ScreenLook) -> None:
    """Refuse a file that cannot be used as it is, and show what to paste to make one that can."""
    if found.problems:
        words = [str(found.prepared) if Path(word) == found.path else word for word in sys.argv[1:]]
        if found.moves_expression:  # into X
            words = [w for k, w in enumerate(words) if "--layer" not in (w.split("=")[0], words[max(k - 1, 0)])]
        again = shlex.join(words)
        say_error(
            f"{found.path} cannot be used as it is: {'; '.join(found.problems)}. Write a prepared file in Python:"
        )
        typer.echo(f"\n{indent(found.remedy(), '    ')}\n\nThen: {program()} {again}", err=True)
        raise typer.Exit(2)
