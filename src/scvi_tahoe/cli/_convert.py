from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scvi_tahoe.cli._mistakes import one_line_mistakes

if TYPE_CHECKING:
    from scvi_tahoe.pretrained import ArcColumns, PretrainedModel

__all__ = ["ModelFormat", "arc_columns", "convert"]


class ModelFormat(StrEnum):
    """Formats that :meth:`~scvi_tahoe.TahoeST.export` writes."""

    SCVI_TAHOE = "scvi-tahoe"
    ARC = "arc"


def convert(
    source: Annotated[str, typer.Argument(help="Folder in arc-state's format, export of ours, or name on the hub.")],
    output: Annotated[Path, typer.Argument(help="Folder to create.")],
    to: Annotated[ModelFormat, typer.Option(help="Format to write.")] = ModelFormat.SCVI_TAHOE,
    checkpoint: Annotated[
        str | None, typer.Option(help="Which checkpoint of a folder in arc-state's format.", show_default="the best")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence of weights from the hub.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write a model in another format: safetensors and JSON, or a folder that arc-state runs.

    \b
    scvi-tahoe convert ST-Tahoe/ converted/
    scvi-tahoe convert converted/ for-arc/ --to arc
    """  # noqa: D301 (typer keeps the lines of a paragraph that begins with this character)
    with one_line_mistakes():
        from scvi_tahoe.pretrained import export_model, read_pretrained, write_arc_folder

        # Not through a model of data: what a folder does not name stays without a name.
        weights = read_pretrained(source, checkpoint, revision=revision, accept_license=accept_license or None)
        if to is ModelFormat.SCVI_TAHOE:
            export_model(weights, output, overwrite=overwrite)
        else:
            write_arc_folder(weights, output, columns=arc_columns(weights), overwrite=overwrite)
    typer.echo(f"{source} as {to.value}: {output}")


def arc_columns(weights: PretrainedModel) -> ArcColumns:
    """Names of ``obs`` columns for arc-state, as the model of an export of ours had them."""
    from scvi_tahoe.pretrained import ArcColumns

    keys = weights.extra.get("keys") or {}
    found = {name: keys.get(f"{name}_key") for name in ("perturbation", "context", "batch")}
    return ArcColumns(**{name: str(column) for name, column in found.items() if column})
