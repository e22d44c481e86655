"""Genes are matched by name."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scvi_tahoe.data import align_genes

GENES = [f"G{i}" for i in range(20)]
CELLS = np.random.default_rng(0).poisson(1.0, size=(5, 20)).astype(np.float32)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize("missing", [0, 2])
def test_columns_come_in_the_order_of_the_model(form, missing):
    order = np.random.default_rng(1).permutation(20)[missing:]
    alignment = align_genes(GENES, ["other", *np.array(GENES)[order]])
    block = np.concatenate([np.full((5, 1), 9.0, np.float32), CELLS[:, order]], axis=1)
    aligned = alignment.apply(form(block))
    assert sparse.issparse(aligned) == (form is sparse.csr_matrix)
    expected = CELLS.copy()
    expected[:, [i for i in range(20) if i not in order]] = 0
    np.testing.assert_array_equal(aligned.toarray() if sparse.issparse(aligned) else aligned, expected)
    assert (len(alignment.missing), alignment.surplus) == (missing, 1)


def test_genes_in_order_are_passed_through():
    alignment = align_genes(GENES, GENES)
    assert alignment.is_identity
    assert alignment.apply(CELLS) is CELLS


def test_too_many_missing_genes_are_refused():
    with pytest.raises(ValueError, match=r"lack 3 of the model's 20 genes, e.g. \['G17'.*max_missing_genes \(now 0.1"):
        align_genes(GENES, GENES[:17])


def test_other_identifiers_are_recognised_as_the_reason():
    with pytest.raises(ValueError, match=r"the data have e.g. \['ENSG00000', .*Bring the gene names to the model's"):
        align_genes(GENES, [f"ENSG{i:05d}" for i in range(20)])


def test_the_report_counts_genes_and_names_missing_ones():
    assert str(align_genes(GENES, ["x", *GENES[:19]])) == (
        "19 genes matched by name, 1 missing and taken as zero (G19), 1 left out"
    )
