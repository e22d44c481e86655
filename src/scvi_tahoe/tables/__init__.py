"""Tables of genes and drugs from files that you have: what a model may know of a perturbation that was not measured.

Each function returns a DataFrame with names as index and one row of numbers for each. It goes into ``adata.uns`` for
``setup_anndata(..., perturbation_embedding_key=...)``, or to :meth:`scvi_tahoe.response.ResponseModel.fit` as one of
its ``tables``. Its ``attrs`` say what it was made from, and under which licence. Nothing is downloaded.
"""

from __future__ import annotations

from scvi_tahoe.response import effects_table
from scvi_tahoe.tables._drugs import drug_structures, drug_targets
from scvi_tahoe.tables._gene_effects import gene_effects
from scvi_tahoe.tables._gene_sets import gene_sets, read_gene_sets
from scvi_tahoe.tables._labels import MatchedTable, match_labels, read_aliases
from scvi_tahoe.tables._proteins import protein_embeddings, protein_kmers
from scvi_tahoe.tables._string_links import string_links
from scvi_tahoe.tables._table import describe_table, read_table, shuffled_table, write_table

__all__ = [
    "MatchedTable",
    "describe_table",
    "drug_structures",
    "drug_targets",
    "effects_table",
    "gene_effects",
    "gene_sets",
    "match_labels",
    "protein_embeddings",
    "protein_kmers",
    "read_aliases",
    "read_gene_sets",
    "read_table",
    "shuffled_table",
    "string_links",
    "write_table",
]
