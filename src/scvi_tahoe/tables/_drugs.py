"""Drugs by their structure: SMILES in a file or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.data import smiles_fingerprints
from scvi_tahoe.tables._table import described, existing

if TYPE_CHECKING:
    from pathlib import Path


@checked()
def drug_structures(
    smiles: Mapping[str, Any] | str | Path, *, radius: int = 2, n_bits: int = 1024, licence: str | None = None
) -> pd.DataFrame:
    """Make a table of drugs from their structures: Morgan fingerprints, as :func:`~scvi_tahoe.smiles_fingerprints`.

    Parameters
    ----------
    smiles
        SMILES of each drug by name; or a ``.csv`` or ``.tsv`` file with names in the first column and a column
        ``smiles``.
    radius, n_bits
        See :func:`~scvi_tahoe.smiles_fingerprints`.
    licence
        Licence of the structures, kept with the table.

    Returns
    -------
    DataFrame ``[drugs, n_bits]`` of zeros and ones.

    Raises
    ------
    ImportError, FileNotFoundError, ValueError
        If RDKit is not installed; if there is no such file; if it has no column ``smiles``, or a SMILES is no molecule.
    """
    source = "SMILES"
    if not isinstance(smiles, Mapping):
        path = existing(smiles, "a file with SMILES")
        source = path.name
        frame = pd.read_csv(path, dtype=str, sep="\t" if path.suffix == ".tsv" else ",")
        column = next((c for c in frame.columns[1:] if str(c).strip().lower() in ("smiles", "canonical_smiles")), None)
        if column is None:
            raise ValueError(
                f"{path.name} has no column smiles after its first; it has {list(map(str, frame.columns))}."
            )
        smiles = dict(zip(frame.iloc[:, 0].astype(str), frame[column], strict=True))
    found = smiles_fingerprints(smiles, radius=radius, n_bits=n_bits)
    return described(
        found["matrix"], list(found["names"]), kind="drug structures", source=source, licence=licence,
        detail=f"Morgan fingerprints, radius {radius}",
    )  # fmt: skip
