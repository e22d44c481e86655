"""The command that embeds cells with a State Embedding model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._terminal import Quiet, one_line_errors, quiet_frameworks, verify_output


def embed(  # noqa: PLR0913
    data: Annotated[Path, typer.Argument(help="h5ad file or zarr folder with counts.")],
    source: Annotated[str, typer.Argument(help="State Embedding model: a folder, or a name on the hub.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Copy of DATA to write, with embeddings in obsm; or .npy for them alone."),
    ],
    key: Annotated[str, typer.Option(help="Key of obsm.")] = "X_state",
    layer: Annotated[str | None, typer.Option(help="Layer with counts.", show_default="X")] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="Column of var with names of genes.", show_default="what matches best")
    ] = None,
    aliases: Annotated[
        Path | None,
        typer.Option(help="csv or tsv with other names of genes, such as hgnc_complete_set.txt."),
    ] = None,
    protein_embeddings: Annotated[
        Path | None,
        typer.Option(help="Protein embeddings of genes.", show_default="protein_embeddings.pt of the model"),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="What values are: counts, log1p, or per_cell (decided for each cell, as Arc's program does)."
        ),
    ] = "counts",
    seed: Annotated[int, typer.Option(help="Random seed for genes of equal value.")] = 0,
    n_draws: Annotated[int, typer.Option(min=1, help="Draws of genes whose embeddings are averaged.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Cells embedded at once.")] = 16,
    precision: Annotated[str, typer.Option(help="32, tf32 or bf16.")] = "32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    checkpoint: Annotated[
        str | None, typer.Option(help="File of weights in the model's folder.", show_default="model.safetensors")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence of weights from the hub.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    quiet: Quiet = False,
) -> None:
    """Embed cells with a State Embedding model such as SE-600M, block by block, however many there are.

    \b
    scvi-tahoe embed counts.h5ad arcinstitute/SE-600M -o embedded.h5ad --accept-license
    scvi-tahoe embed screen.h5ad SE-600M/ -o embedded.h5ad --layer counts --precision bf16
    """
    quiet_frameworks()
    with one_line_errors():
        from scvi_tahoe.pretrained import embed_cells
        from scvi_tahoe.tables import read_aliases

        verify_output(output, source, aliases, protein_embeddings)  # the cells may get their embeddings
        names = None if aliases is None else read_aliases(aliases)
        report = embed_cells(
            data, source, checkpoint, output=output, key=key, layer=layer, gene_key=gene_key, aliases=names,
            protein_embeddings=protein_embeddings, scale=scale, seed=seed, n_draws=n_draws, batch_size=batch_size,  # type: ignore[arg-type]
            precision=precision, device=device, overwrite=overwrite, revision=revision,  # type: ignore[arg-type]
            accept_license=accept_license or None, progress=not quiet,
        )  # fmt: skip
    typer.echo(f"{report.text()}\n{output}")
