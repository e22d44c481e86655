"""Drugs by their structure. Needs RDKit, the extra "chem"."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from scvi_tahoe import smiles_fingerprints
from scvi_tahoe.data import EmbeddingTable

SMILES = {"ethanol": "CCO", "propanol": "CCCO", "benzene": "c1ccccc1", "toluene": "Cc1ccccc1"}


@pytest.fixture
def fingerprints():
    pytest.importorskip("rdkit")
    return smiles_fingerprints


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_alike_drugs_have_alike_rows_however_they_are_written(fingerprints):
    table = EmbeddingTable.from_user(fingerprints({**SMILES, "same": "OCC"}, n_bits=256), "fingerprints")
    assert table.names == (*SMILES, "same")
    assert table.width == 256
    assert set(np.unique(table.matrix)) == {0.0, 1.0}
    rows = dict(zip(table.names, table.matrix, strict=True))
    np.testing.assert_array_equal(rows["ethanol"], rows["same"])
    assert cosine(rows["benzene"], rows["toluene"]) > 0.3 > cosine(rows["benzene"], rows["ethanol"])


def test_the_radius_decides_how_much_a_bit_sees(fingerprints):
    bits = [fingerprints(SMILES, radius=radius)["matrix"].sum() for radius in (0, 1, 2)]
    assert bits[0] < bits[1] <= bits[2]


@pytest.mark.parametrize("bad", ["C1CC", "not a molecule", "", None, float("nan")])
def test_what_is_no_molecule_is_refused_by_name(bad, fingerprints, capfd):
    with pytest.raises(ValueError, match=r"the SMILES of 1 of 5 drugs are no molecules: \{'mystery': .*correct them"):
        fingerprints({**SMILES, "mystery": bad})
    assert not capfd.readouterr().err  # one message, not RDKit's beside it


def test_numbers_out_of_range_and_an_empty_list_are_refused(fingerprints):
    with pytest.raises(ValueError, match="n_bits=0 must be 1 or more"):
        fingerprints(SMILES, n_bits=0)
    with pytest.raises(ValueError, match="the SMILES of 0 of 0 drugs"):
        fingerprints({})


def test_without_rdkit_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r'pip install "scvi-tahoe\[chem\]"'):
        smiles_fingerprints(SMILES)
