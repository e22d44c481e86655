"""Genes by the sequence of their proteins: short words of amino acids, from a FASTA file."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING

from scvi_tahoe._arguments import checked
from scvi_tahoe.tables._table import described, existing, largest_components

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_GENE = re.compile(r"\bGN=(\S+)")  # UniProt
_AMINO_ACIDS = re.compile(r"[A-Za-z*-]+")


@checked()
def protein_kmers(
    path: str | Path, *, k: int = 3, n_components: int = 128, licence: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Make a table of genes from the amino acids of their proteins.

    Words of ``k`` amino acids are counted, weighted (1 + log of the count, times inverse document frequency) and
    decomposed. It needs no network; embeddings of a protein language model say more, see
    :func:`~scvi_tahoe.read_embedding_table`.

    Parameters
    ----------
    path
        FASTA file, ``.gz`` or not. The name of an entry is its gene (``GN=`` of UniProt), else its first word. Of
        several entries of one name, the longest counts.
    k
        Length of a word.
    n_components
        Most columns of the table.
    licence
        Licence of the sequences, kept with the table.
    seed
        Random seed of the decomposition.

    Returns
    -------
    DataFrame ``[genes, components]``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is not in the FASTA format.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    path = existing(path, "a FASTA file")
    if k < 1:
        raise ValueError(f"k={k!r} must be 1 or more.")
    sequences = {name: text for name, text in _sequences(path).items() if len(text) >= k}
    if len(sequences) < 2:
        raise ValueError(f"{path.name} has {len(sequences)} sequences of {k} or more amino acids; two are needed.")
    words = TfidfVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False, sublinear_tf=True)
    counts = words.fit_transform(sequences.values())
    return described(
        largest_components(counts, n_components, seed), list(sequences), kind="protein words", source=path.name,
        licence=licence, detail=f"{counts.shape[1]:,} words of {k} amino acids",
    )  # fmt: skip


def _sequences(path: Path) -> dict[str, str]:
    """Return the longest sequence of each name."""
    found: dict[str, str] = {}
    name, parts = "", list[str]()

    def finish() -> None:
        if name and len(text := "".join(parts)) > len(found.get(name, "")):
            found[name] = text

    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(map(str.strip, stream), 1):
            if line.startswith(">"):
                finish()
                gene = _GENE.search(line)
                name, parts = gene[1] if gene else (line[1:].split() or [f"entry {number}"])[0], []
            elif line and (not name or not _AMINO_ACIDS.fullmatch(line)):
                raise ValueError(f"line {number} of {path.name} is no part of a FASTA file: {line[:40]!r}.")
            else:
                parts.append(line.upper())
    finish()
    return found
