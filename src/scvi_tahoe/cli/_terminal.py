"""What a user at a terminal reads: one line for a user error (exit code 2), and no advice of other packages.

Ctrl-C ends a command with exit code 130; any other exception is a bug, shown in full.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

#: environment variable that brings the full traceback back
TRACEBACK_VARIABLE = "SCVI_TAHOE_TRACEBACK"

#: names of the options of all commands, in Python
OPTIONS: set[str] = set()
_QUOTES = "'\""
#: an option of a call with its value
_OPTION = re.compile(r"""\b([a-z_]+)=(\.\.\.|'[^']*'|"[^"]*"|\([^()]*\)|\[[^\[\]]*\]|[\w.]*\w)""")
_ORDER = "best, final, last or the highest step"
Checkpoint = Annotated[
    str | None, typer.Option(help="Which checkpoint of a folder in arc-state's format.", show_default=_ORDER)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]


@contextmanager
def one_line_errors(
    when_interrupted: str = "Stopped; nothing was written.", *, of_file: bool = False
) -> Iterator[None]:
    """Turn errors about the user's input into one line on stderr and exit code 2.

    Options are named as one types them, or with ``of_file`` as a run file has them.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\n{when_interrupted}", err=True)
        raise typer.Exit(130) from None
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get(TRACEBACK_VARIABLE) or not _is_user_error(error):
            raise
        # str() of a KeyError is its repr, quotes and all
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        if isinstance(error, OSError) and error.strerror:  # without the number of the system
            text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
        say_error((in_file_words if of_file else in_shell_words)(" ".join(str(text).split())))
        raise typer.Exit(2) from None


def named_files(texts: list[str] | None) -> dict[str, str]:
    """Read options of the form ``NAME=FILE``."""
    found = {}
    for text in texts or []:
        name, mark, path = text.partition("=")
        if not (name and mark and path):
            raise ValueError(f"--table {text!r} is not NAME=FILE, e.g. esm2=esm2.parquet.")
        if name in found:
            raise ValueError(f"--table names {name!r} more than once; give each table a name of its own.")
        found[name] = path
    return found


def program() -> str:
    """Return what to type to run this program again, which is not on the path after ``make demo`` or ``python -m``."""
    name, started_as = "scvi-tahoe", Path(sys.argv[0])
    if started_as.name == "__main__.py":
        return "python -m scvi_tahoe"
    return shlex.quote(str(started_as)) if started_as.name == name and shutil.which(name) is None else name


def same_command() -> str:
    """Return the command that was given, as one types it."""
    return f"{program()} {shlex.join(sys.argv[1:])}"


def verify_output(output: Path | None, *inputs: Path | str | None) -> None:
    """Refuse to write what a command makes over what it reads, or over a folder that holds it."""
    from scvi_tahoe._arguments import verify_path

    if output is not None:
        verify_path(output)
    read = [Path(path) for path in inputs if path is not None and os.path.exists(path)]
    if output is None or not output.exists():
        return
    place = output.resolve()
    if any(output.samefile(path) or path.resolve().is_relative_to(place) for path in read):
        raise ValueError(f"{output} is what this command reads, or holds it; give another name for what it writes.")


def say_error(text: str) -> None:
    """Write a line about a mistake to standard error, in colour on a terminal."""
    typer.secho("scvi-tahoe: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(text, err=True)


def in_shell_words(text: str) -> str:
    """Name options as one types them: ``overwrite=True`` becomes ``--overwrite``, ``seed=1`` becomes ``--seed 1``."""

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        flag = f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")
        if name not in OPTIONS:
            return found[0]
        if value == "False":
            return flag.replace("--", "--no-", 1)
        return flag if value in ("True", "...", "None") else f"{flag} {value.strip(_QUOTES)}"

    return _OPTION.sub(option, text)


def in_file_words(text: str) -> str:
    """Name options as a run file has them: ``accept=('a', 'b')`` becomes ``start.accept: [a, b]``."""
    from scvi_tahoe.study import DataConfig, ModelConfig, ScoreConfig, StartConfig, TrainConfig

    sections = {
        "data": DataConfig,
        "start": StartConfig,
        "model": ModelConfig,
        "train": TrainConfig,
        "score": ScoreConfig,
    }
    places = [(f.name, section) for section, config in sections.items() for f in fields(config)]  # type: ignore[arg-type]
    names = Counter(name for name, _ in places)

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if names[name] != 1:
            return found[0]
        shown = re.sub("""['"]""", "", value).replace("(", "[").replace(")", "]")
        return f"{dict(places)[name]}.{name}: {shown.lower() if shown in ('True', 'False') else shown}"

    return _OPTION.sub(option, text)


def _is_user_error(error: Exception) -> bool:
    """Return whether the error is about input, a licence to be accepted, or an extra to be installed."""
    if isinstance(error, RuntimeError):
        from scvi_tahoe.pretrained import LicenceNotAcceptedError

        return isinstance(error, LicenceNotAcceptedError)
    return not isinstance(error, ImportError) or "pip install" in str(error)


def quiet_frameworks() -> None:
    """Silence advice of Lightning and scvi-tools, and Lightning's deprecations within itself; other warnings stay.

    What the package logs during a run is in the output of the commands anyway.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "scvi", "scvi.data._download", "scvi_tahoe"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")
    # frozen parts are meant to be in eval mode, and short runs are meant to have few minibatches
    for text in (".*is deprecated", r"Found \d+ module\(s\) in eval mode", "The number of training batches"):
        warnings.filterwarnings("ignore", message=text, module="lightning")
