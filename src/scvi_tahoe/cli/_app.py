"""The application: one function per command."""

from __future__ import annotations

import os
import re
from inspect import cleandoc, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvi_tahoe.cli._convert import convert
from scvi_tahoe.cli._demo import demo
from scvi_tahoe.cli._embed import embed
from scvi_tahoe.cli._evaluate import evaluate
from scvi_tahoe.cli._plan import plan
from scvi_tahoe.cli._predict import predict
from scvi_tahoe.cli._respond import respond
from scvi_tahoe.cli._runs import check, finetune, inspect, study
from scvi_tahoe.cli._tables import tables
from scvi_tahoe.cli._terminal import OPTIONS, say_error
from scvi_tahoe.cli._train import init, train

if TYPE_CHECKING:
    from collections.abc import Callable

_DOCS = "Documentation: https://scvi-tahoe.readthedocs.io"

app = typer.Typer(
    name="scvi-tahoe",
    no_args_is_help=True,
    # bugs are shown as plain tracebacks, user errors in one line (see `_terminal.py`)
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_DOCS,
)
_GROUPS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Start": (demo, init, train),
    "Predict and judge": (predict, evaluate, plan, respond),
    "Runs as files": (finetune, study, check, inspect),
    "Files": (convert, embed, tables),
}


def _add(command: Callable[..., Any], group: str) -> None:
    """Add a command; the lines after \\b in its docstring are examples, which help shows below the options."""
    OPTIONS.update(signature(command).parameters)
    text, _, rest = cleandoc(command.__doc__ or "").partition("\b\n")
    examples, _, more = rest.partition("\n\n")
    # paragraphs are one line each, and are wrapped at the width of the terminal
    paragraphs = [" ".join(p.split()) for p in (text + "\n\n" + more).split("\n\n") if p.strip()]
    lines = re.sub(r"\s*\\\n\s*", " ", examples).splitlines()
    app.command(
        help="\n\n".join(paragraphs),
        epilog="\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines), _DOCS]),
        rich_help_panel=group,
    )(command)


for _group, _commands in _GROUPS.items():
    for _command in _commands:
        _add(_command, _group)


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
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # a bug
            raise
        context = getattr(error, "ctx", None)
        hint = f" See: {context.command_path} -h" if context is not None else ""
        say_error(error.format_message() + hint)
        raise SystemExit(getattr(error, "exit_code", 2)) from None
    raise SystemExit(code if isinstance(code, int) else 0)
