"""The command that writes a model in another format, or h5ad files as a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._terminal import Checkpoint, one_line_errors, verify_output


def convert(
    source: Annotated[
        list[str],
        typer.Argument(help="Model: folder in arc-state's format, exported folder, or name on the hub. Or h5ad files."),
    ],
    output: Annotated[Path, typer.Argument(help="Folder to create.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="Format to write: scvi-tahoe or arc for a model, store for data.",
            show_default="store for h5ad files, else scvi-tahoe",
        ),
    ] = None,  # fmt: skip
    checkpoint: Checkpoint = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence of weights from the hub.")
    ] = False,
    perturbation_key: Annotated[str | None, typer.Option(help="Data: column of obs with perturbations.")] = None,
    control: Annotated[str | None, typer.Option(help="Data: label of control cells.")] = None,
    context_key: Annotated[str | None, typer.Option(help="Data: column of obs with contexts.")] = None,
    layer: Annotated[str | None, typer.Option(help="Data: layer with expression.", show_default="X")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Data: show progress bars.")] = True,
) -> None:
    """Convert a model to safetensors and JSON or to a folder that arc-state runs; or h5ad files to a store on disk.

    A store holds data larger than memory.

    \b
    scvi-tahoe convert ST-Tahoe/ converted/
    scvi-tahoe convert converted/ for-arc/ --to arc
    scvi-tahoe convert plate_1.h5ad plate_2.h5ad atlas.zarr --perturbation-key drug --control DMSO
    """
    required = {"--perturbation-key": perturbation_key, "--control": control}
    only_data = required | {"--context-key": context_key, "--layer": layer}
    only_models = {"--checkpoint": checkpoint, "--revision": revision, "--accept-license": accept_license or None}
    with one_line_errors():
        verify_output(output, *source)
        to = to or ("store" if all(name.endswith(".h5ad") for name in source) else "scvi-tahoe")
        is_data = to == "store"
        if wrong := [name for name, value in (only_models if is_data else only_data).items() if value is not None]:
            raise ValueError(f"{', '.join(wrong)} is for {'models' if is_data else 'data'}, and the format is {to}.")
        if is_data:
            if missing := [name for name, value in required.items() if value is None]:
                raise ValueError(f"a store is sorted by condition: give {' and '.join(missing)}.")
            from scvi_tahoe import read_store, write_store

            write_store(
                source, output, progress=progress, overwrite=overwrite, layer=layer,
                perturbation_key=str(perturbation_key), control=str(control), context_key=context_key,
            )  # fmt: skip
            size = "{} cells x {} genes".format(*read_store(output).shape)
            typer.echo(f"{size}: {output}; open it with scvi_tahoe.read_store({str(output)!r})")
            return
        if len(source) > 1:
            raise ValueError(f"one model is converted at a time, and there are {len(source)}: {', '.join(source)}.")
        from scvi_tahoe.pretrained import FORMATS, read_pretrained

        write = FORMATS.find(to).write
        # not through a model on data: what the folder does not name stays nameless
        weights = read_pretrained(source[0], checkpoint, revision=revision, accept_license=accept_license or None)
        write(weights, output, overwrite=overwrite)
    typer.echo(f"{source[0]} as {to}: {output}")
