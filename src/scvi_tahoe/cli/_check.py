from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._mistakes import one_line_mistakes

__all__ = ["check"]


def check(
    config: Annotated[Path, typer.Argument(help="config.yaml of arc-state.")],
    write: Annotated[
        Path | None, typer.Option(help="Also write it as a run of ours, for `scvi-tahoe finetune`.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show an arc-state configuration as a run of ours, and what arc-state ignores or gets wrong in it, line by line.

    Exit code 1 if something would make the run meaningless, 2 if the file cannot be read.

    \b
    scvi-tahoe check config.yaml
    scvi-tahoe check config.yaml --write run.yaml
    scvi-tahoe check config.yaml --strict --json
    """  # noqa: D301 (typer keeps the lines of a paragraph that begins with this character)
    with one_line_mistakes():
        from json import dumps

        from scvi_tahoe.study import check_config

        result = check_config(config)
        typer.echo(dumps(result.to_dict(), indent=1) if json else str(result))
        if write is not None:
            if write.exists():
                raise ValueError(f"{write} exists; give the name of a new file.")
            result.run.to_yaml(write)
            typer.echo(f"\nWritten: {write}. Fill in data.path, then: scvi-tahoe finetune {write} --dry-run", err=json)
    raise typer.Exit(result.exit_code(strict=strict))
