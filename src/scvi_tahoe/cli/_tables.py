"""The command that makes a table of genes or drugs from a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scvi_tahoe.cli._terminal import one_line_errors, verify_output


class Kind(StrEnum):
    """What the file holds."""

    GENE_SETS = "gene-sets"
    STRING = "string"
    GENE_EFFECTS = "gene-effects"
    PROTEINS = "proteins"
    PROTEIN_MODEL = "protein-model"
    DRUGS = "drugs"
    DRUG_TARGETS = "drug-targets"
    MATRIX = "matrix"


def tables(  # noqa: PLR0913
    kind: Annotated[Kind, typer.Argument(help="What the file holds.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="gmt files, a links file of STRING, a csv of gene effects, of SMILES or of targets, FASTA, a matrix."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="parquet (keeps the origin), csv, tsv or npz to write.")
    ],
    n_components: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of columns of the table.", show_default="64 or 128")
    ] = None,
    info: Annotated[Path | None, typer.Option(help="string: file with the gene of each protein.")] = None,
    min_score: Annotated[int | None, typer.Option(help="string: minimum score of a link.", show_default="400")] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="proteins: length of a word.", show_default="3")] = None,
    model: Annotated[
        str | None, typer.Option(help="protein-model: folder of a protein language model such as ESM2.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with a label on each line: keep their rows, report what is missing.")
    ] = None,
    aliases: Annotated[
        Path | None, typer.Option(help="csv or tsv with other names of genes, such as hgnc_complete_set.txt.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the file, kept with the table.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the decomposition.", show_default="0")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Make a table of genes or drugs, from which perturbations that were not measured are predicted.

    \b
    scvi-tahoe tables gene-sets c5.go.bp.symbols.gmt -o go.parquet --licence "CC BY 4.0"
    scvi-tahoe tables string 9606.protein.links.v12.0.txt.gz --info 9606.protein.info.v12.0.txt.gz -o string.parquet
    scvi-tahoe tables drugs drugs.csv -o structures.parquet
    """
    given = {"n_components": n_components, "info": info, "min_score": min_score, "k": k, "model": model, "seed": seed}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with one_line_errors():
        from scvi_tahoe import tables as made

        verify_output(output, *files, info, labels, aliases)
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists; give --overwrite to replace it, or another name.")
        decomposed = {"n_components", "seed"}
        makers: dict[Kind, tuple[Any, set[str]]] = {
            Kind.GENE_SETS: (made.gene_sets, decomposed),
            Kind.STRING: (made.string_links, decomposed | {"info", "min_score"}),
            Kind.GENE_EFFECTS: (made.gene_effects, decomposed),
            Kind.PROTEINS: (made.protein_kmers, decomposed | {"k"}),
            Kind.PROTEIN_MODEL: (made.protein_embeddings, {"model"}),
            Kind.DRUGS: (made.drug_structures, set()),
            Kind.DRUG_TARGETS: (made.drug_targets, decomposed),
            Kind.MATRIX: (made.read_table, set()),
        }
        make, takes = makers[kind]
        if wrong := ["--" + name.replace("_", "-") for name in options if name not in takes]:
            raise ValueError(f"{', '.join(wrong)} has no effect on {kind.value}.")
        if kind is Kind.PROTEIN_MODEL and model is None:
            raise ValueError("protein-model needs --model, the folder of a protein language model.")
        if len(files) > 1 and kind is not Kind.GENE_SETS:
            raise ValueError(f"{kind.value} takes one file, and there are {len(files)}.")
        if licence is not None:
            options["licence"] = licence
        table = make(files if kind is Kind.GENE_SETS else files[0], **options)
        missing: list[str] = []
        if labels is not None:
            wanted = [line.strip() for line in labels.read_text("utf-8").splitlines() if line.strip()]
            known = None if aliases is None else made.read_aliases(aliases)
            table, report = made.match_labels(table, wanted, known)
            missing = [str(label) for label in report.index[report["how"] == "missing"]]
        elif aliases is not None:
            raise ValueError("--aliases is for finding --labels; give both.")
        made.write_table(table, output)
    typer.echo(made.describe_table(table))
    if labels is not None:
        more = ", ..." if len(missing) > 10 else ""
        typer.echo(f"{len(missing)} labels were not found{': ' if missing else ''}{', '.join(missing[:10])}{more}")
    typer.echo(str(output))
