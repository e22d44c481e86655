"""The command that learns from a table of responses and predicts conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._terminal import Quiet, named_files, one_line_errors, quiet_frameworks, verify_output


def respond(  # noqa: PLR0913
    table: Annotated[Path, typer.Argument(help="h5ad with one row for each condition: its change against control.")],
    perturbation_key: Annotated[str, typer.Option(help="Column of obs with the perturbations.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="h5ad file to write the predicted changes to.")],
    context_key: Annotated[str | None, typer.Option(help="Column of obs with the contexts.")] = None,
    control: Annotated[str | None, typer.Option(help="Label of control rows, which are left out.")] = None,
    dose_key: Annotated[str | None, typer.Option(help="Column of obs with the doses.")] = None,
    combination_separator: Annotated[
        str | None, typer.Option(help="Text between the perturbations of a combination, e.g. +.")
    ] = None,
    variance_layer: Annotated[
        str | None, typer.Option(help="Layer with the sampling variances.", show_default="not known")
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option(
            "--table", help="Embeddings of perturbations, NAME=FILE (csv, tsv, parquet, npz); may be repeated."
        ),
    ] = None,
    perturbations: Annotated[
        list[str] | None,
        typer.Option("--predict", help="Perturbation to predict; may be repeated.", show_default="all measured"),
    ] = None,
    contexts: Annotated[
        list[str] | None, typer.Option("--context", help="Context to predict; may be repeated.", show_default="all")
    ] = None,
    criterion: Annotated[str, typer.Option(help="Criterion to optimise: error or discrimination.")] = "error",
    report: Annotated[Path | None, typer.Option(help="csv file to write weights and scores to.")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder to save the model to.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed for folds.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    quiet: Quiet = False,
) -> None:
    """Learn from a table of responses, such as published pseudobulk changes, and predict measured and new conditions.

    \b
    scvi-tahoe respond changes.h5ad --perturbation-key gene --context-key cell_line -o denoised.h5ad
    scvi-tahoe respond changes.h5ad --perturbation-key gene --table esm2=esm2.parquet --predict STAT1 -o predicted.h5ad
    """
    quiet_frameworks()
    with one_line_errors():
        named = named_files(tables)
        for path in (output, report, save):
            verify_output(path, table, *named.values())
            if path is not None and path.exists() and not overwrite:
                raise FileExistsError(f"{path} exists; give --overwrite to replace it, or another name.")
        import pandas as pd

        from scvi_tahoe.files import atomic_write
        from scvi_tahoe.pretrained import read_embedding_table
        from scvi_tahoe.response import ResponseModel
        from scvi_tahoe.study import read_cells

        adata = read_cells(table)
        found = {name: read_embedding_table(path) for name, path in named.items()}
        model = ResponseModel.fit(
            adata, perturbation_key=perturbation_key, context_key=context_key, control=control, dose_key=dose_key,
            combination_separator=combination_separator, variance_layer=variance_layer, criterion=criterion,  # type: ignore[arg-type]
            tables={name: pd.DataFrame(read["matrix"], index=list(read["names"])) for name, read in found.items()},
            seed=seed, device=device, progress=not quiet,
        )  # fmt: skip
        predicted = model.predict(perturbations, contexts)
        scores = model.report()
        with atomic_write(output) as partial:
            predicted.write_h5ad(partial)
        if report is not None:
            with atomic_write(report) as partial:
                scores.to_csv(partial, index=False)
        if save is not None:
            model.save(save, overwrite=overwrite)
    if not quiet:
        typer.echo(scores.attrs["text"])
    typer.echo(f"{predicted.n_obs:,} predicted conditions of {predicted.n_vars:,} genes: {output}")
