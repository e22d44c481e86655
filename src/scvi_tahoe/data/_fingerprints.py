"""Drugs by their structure: molecular fingerprints as perturbation embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe._arguments import checked

if TYPE_CHECKING:
    from collections.abc import Mapping


@checked(radius=(0, None), n_bits=(1, None))
def smiles_fingerprints(smiles: Mapping[str, Any], *, radius: int = 2, n_bits: int = 1024) -> dict[str, np.ndarray]:
    """Return a perturbation-embedding table of drugs: Morgan fingerprints of their structures.

    Drugs that share substructures share bits, so a drug that was not measured is described by its structure.

    Parameters
    ----------
    smiles
        SMILES of every drug, by its label.
    radius
        Bonds around each atom that a bit describes; 2 corresponds to ECFP4.
    n_bits
        Width of a row.

    Returns
    -------
    ``{"names": labels, "matrix": float32 [drugs, n_bits] of zeros and ones}``, to be put into ``adata.uns`` for
    ``setup_anndata(..., perturbation_embedding_key=...)``.

    Raises
    ------
    ImportError, ValueError
        If RDKit is not installed; if a SMILES is not a molecule (the message names the drugs), or a number
        is out of range.

    References
    ----------
    Rogers and Hahn 2010, *Extended-connectivity fingerprints*, J. Chem. Inf. Model. 50, 742-754; computed by RDKit.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    except ImportError:
        raise ImportError('fingerprints need RDKit: pip install "scvi-tahoe[chem]".') from None
    with rdBase.BlockLogs():
        molecules = {name: Chem.MolFromSmiles(text) if isinstance(text, str) else None for name, text in smiles.items()}
    bad = [name for name, molecule in molecules.items() if molecule is None or not molecule.GetNumAtoms()]
    if bad or not molecules:
        given = {name: smiles[name] for name in bad[:3]}
        raise ValueError(f"the SMILES of {len(bad)} of {len(molecules)} drugs are no molecules: {given}; correct them.")
    generator = GetMorganGenerator(radius=radius, fpSize=n_bits)
    rows = [generator.GetFingerprintAsNumPy(molecule) for molecule in molecules.values()]
    return {"names": np.array([str(n) for n in molecules], dtype=object), "matrix": np.stack(rows).astype(np.float32)}
