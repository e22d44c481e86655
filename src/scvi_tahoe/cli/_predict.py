"""The command that predicts cells after perturbations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from scvi_tahoe.cli._terminal import one_line_errors, quiet_frameworks, verify_output


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that TahoeST.save, export or finetune wrote.")],
    data: Annotated[Path, typer.Argument(help="h5ad with the control cells to start from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file or zarr folder to write.")],
    perturbation: Annotated[
        list[str] | None,
        typer.Option(
            help="Perturbation to predict; may be repeated. 'all' takes every row of the embedding table.",
            show_default="those of the training data and of DATA",
        ),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(help="Context to predict; may be repeated.", show_default="all")
    ] = None,
    n_cells: Annotated[
        int | None, typer.Option(help="Number of cells of each condition.", show_default="one for each control cell")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for drawing control cells.")] = 0,
    devices: Annotated[
        str | None, typer.Option(help="GPUs: how many, a list such as 0,1 or auto.", show_default="the model's own")
    ] = None,
    check_scale: Annotated[
        bool, typer.Option(help="Refuse control cells on another scale than those of the training data.")
    ] = True,
    new_batches: Annotated[
        str, typer.Option(help="How to treat technical batches that the model has not seen: error, mean or nearest.")
    ] = "error",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Compare a saved model with its checksums, which reads it once more."
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing prediction.")] = False,
) -> None:
    """Predict cells after perturbations and write them in chunks, so that they may be larger than memory.

    \b
    scvi-tahoe predict model/ controls.h5ad -o predicted.h5ad
    scvi-tahoe predict model/ controls.h5ad -o predicted.zarr --devices auto
    scvi-tahoe predict model/ controls.h5ad -o predicted.h5ad --perturbation STAT1 --context A549
    """
    quiet_frameworks()
    logging.getLogger("scvi_tahoe.prediction").setLevel(logging.INFO)  # what is predicted
    with one_line_errors():
        from scvi_tahoe import TahoeST
        from scvi_tahoe.pretrained import holds_run, is_export
        from scvi_tahoe.study import read_cells

        verify_output(output, data, model)
        adata = read_cells(data)
        # an export knows its columns, and needs no data but the cells to start from
        exported = is_export(model) or holds_run(model)
        if exported and not verify:
            raise ValueError(f"verify=False is for models of TahoeST.save; {model} is always read with its checksums.")
        network = TahoeST.from_pretrained(model) if exported else TahoeST.load(model, adata=adata, verify=verify)
        predicted = network.predict(
            adata if exported else None, perturbations="all" if perturbation == ["all"] else perturbation,
            contexts=context, n_cells=n_cells, seed=seed, check_scale=check_scale, new_batches=new_batches,  # type: ignore[arg-type]
            devices=_devices(devices),
            path=output, overwrite=overwrite,
        )  # fmt: skip
    typer.echo(f"{predicted.n_obs:,} predicted cells of {predicted.n_vars:,} genes: {output}")


def _devices(text: str | None) -> Any:
    """Return ``"2"`` as a number, ``"0,1"`` and ``"0,"`` as lists, and anything else unchanged."""
    if text is None or not text.replace(",", "").isdecimal():
        return text
    return [int(part) for part in text.split(",") if part] if "," in text else int(text)
