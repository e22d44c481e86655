"""The command that chooses what to measure next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._terminal import Json, named_files, one_line_errors, quiet_frameworks, verify_output


def plan(  # noqa: PLR0913
    data: Annotated[Path, typer.Argument(help="h5ad file with what was measured: log1p of normalised counts.")],
    perturbation_key: Annotated[str, typer.Option(help="Column of obs with the perturbations.")],
    control: Annotated[str, typer.Option(help="Label of control cells.")],
    context_key: Annotated[
        str | None, typer.Option(help="Column of obs with cell lines, donors, ...", show_default="a single context")
    ] = None,
    dose_key: Annotated[str | None, typer.Option(help="Column of obs with doses of drugs.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with expression.", show_default="X")] = None,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", help="Table of genes or drugs as NAME=FILE, for targets that were measured nowhere."),
    ] = None,
    n: Annotated[int, typer.Option("--number", "-n", min=1, help="Number of conditions to choose.")] = 20,
    perturbation: Annotated[
        list[str] | None,
        typer.Option(help="Perturbation that can be measured; may be repeated.", show_default="all that are known"),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(help="Context to measure in; may be repeated.", show_default="all")
    ] = None,
    to_predict: Annotated[
        list[str] | None,
        typer.Option(help="Perturbation that matters; may be repeated.", show_default="all that can be measured"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV file to write.")] = None,
    json: Json = False,
) -> None:
    """Choose the conditions to measure next: those that would tell the most about all others that are not measured.

    \b
    scvi-tahoe plan screen.h5ad --perturbation-key target_gene --control non-targeting --context-key cell_line -n 10
    scvi-tahoe plan screen.h5ad --perturbation-key gene --control NT --table go=go.parquet -o plan.csv

    A condition can be chosen if others tell something about it: the same perturbation was measured in another context,
    or a table of genes or drugs describes it (scvi-tahoe tables). No network is trained.
    """
    quiet_frameworks()
    with one_line_errors():
        from scvi_tahoe import TahoeST, read_embedding_table
        from scvi_tahoe.files import atomic_write_text
        from scvi_tahoe.study import read_cells

        if output is not None and output.exists():
            raise FileExistsError(f"{output} exists; give the name of a new file.")
        files = named_files(table)
        verify_output(output, data, *files.values())
        adata = read_cells(data)
        for name, path in files.items():
            adata.uns[name] = read_embedding_table(path)
        TahoeST.setup_anndata(
            adata, perturbation_key, control, context_key=context_key, dose_key=dose_key, layer=layer,
            perturbation_embedding_key=list(files) or None,
        )  # fmt: skip
        chosen = TahoeST(adata, prior="response").plan_next(
            n, perturbations=perturbation, contexts=context, to_predict=to_predict
        )
        if output is not None:
            atomic_write_text(output, chosen.to_csv(index=False))
    text = (
        chosen.to_json(orient="records", indent=1)
        if json
        else chosen.to_string(index=False, formatters=dict.fromkeys(("gain", "left"), "{:.2g}".format))
    )
    typer.echo(text)
    if not json:
        typer.echo("gain: share of the expected error of all to predict that it takes away; left: what is left then")
    if output is not None:
        typer.echo(f"Written: {output}", err=json)
