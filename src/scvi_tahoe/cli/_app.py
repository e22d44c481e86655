"""The application: one function per command."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from scvi_tahoe.cli._convert import convert
from scvi_tahoe.cli._demo import demo
from scvi_tahoe.cli._embed import embed
from scvi_tahoe.cli._evaluate import evaluate
from scvi_tahoe.cli._predict import predict
from scvi_tahoe.cli._respond import respond
from scvi_tahoe.cli._runs import check, finetune, inspect, study
from scvi_tahoe.cli._tables import tables

app = typer.Typer(
    name="scvi-tahoe",
    no_args_is_help=True,
    # bugs are shown as plain tracebacks, user errors in one line (see `_terminal.py`)
    pretty_exceptions_enable=False,
)
for command in (demo, finetune, predict, evaluate, respond, study, check, inspect, convert, embed, tables):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"scvi-tahoe {version('scvi-tahoe')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Predict how cells respond to perturbations: State Transition models in scvi-tools."""


def main() -> None:
    """Run the command line."""
    # threads that wait for each other must not hold the cores that they wait for; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
