"""Drugs by their structure, and by their targets and mechanisms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import smiles_fingerprints
from scvi_tahoe.files import read_csv
from scvi_tahoe.tables._table import components_of_sets, described, existing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

_SEPARATOR = re.compile(r"\s*[|;,]\s*")


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
        If RDKit is not installed; if there is no such file; if it has no column ``smiles``, or a SMILES
        is not a molecule.
    """
    source = "SMILES"
    if not isinstance(smiles, Mapping):
        path, frame = _read(smiles, "a file with SMILES")
        source = path.name
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


@checked()
def drug_targets(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    n_components: int = 64,
    licence: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Make a table of drugs from their targets, mechanisms, pathways or classes.

    Each value of a column is a set of the drugs that have it; sets are encoded as in
    :func:`~scvi_tahoe.tables.gene_sets`, so that a rare target is more informative than a common one.

    Parameters
    ----------
    path
        ``.csv`` or ``.tsv`` file with names of drugs in the first column; several values of a drug in one column are
        separated by ``|``, ``;`` or ``,``.
    columns
        Columns to use. If None, all but the first.
    n_components
        Maximum number of columns.
    licence
        Licence of the file, kept with the table.
    seed
        Random seed of the decomposition.

    Returns
    -------
    DataFrame ``[drugs, components]``; drugs without any value are left out.

    Raises
    ------
    FileNotFoundError, KeyError, ValueError
        If there is no such file or column, or no two drugs have a value.
    """
    path, frame = _read(path, "a file with targets of drugs")
    used = list(map(str, frame.columns[1:])) if columns is None else list(columns)
    if unknown := [name for name in used if name not in frame]:
        near = nearest_names(unknown[0], list(map(str, frame.columns)))
        raise KeyError(f"{path.name} has no column {unknown[0]!r}{near}; it has {list(map(str, frame.columns))}.")
    sets: dict[tuple[str, str], set[str]] = {}
    for column in used:
        for drug, values in zip(frame.iloc[:, 0].astype(str), frame[column], strict=True):
            for value in _SEPARATOR.split(values.strip()) if isinstance(values, str) else ():
                if value:
                    sets.setdefault((column, value.casefold()), set()).add(drug)
    names = sorted(set().union(*sets.values())) if sets else []
    telling = [members for members in sets.values() if 1 < len(members) < len(names)]
    if len(telling) < 2:
        raise ValueError(
            f"{path.name} has {len(telling)} values in {used} that several drugs have, but not all; 2 are needed."
        )
    return described(
        components_of_sets(telling, names, n_components, seed), names, kind="drug targets", source=path.name,
        licence=licence, detail=f"{len(telling):,} values of {', '.join(used)}",
    )  # fmt: skip


def _read(path: str | Path, what: str) -> tuple[Path, pd.DataFrame]:
    path = existing(path, what)
    options: dict[str, Any] = {"dtype": str, "sep": "\t" if path.suffix == ".tsv" else ","}
    frame = read_csv(path, **options)
    # a drug may be called NA, and a value that is called so is missing
    names = read_csv(path, usecols=[0], keep_default_na=False, na_values=[""], **options).iloc[:, 0]
    if names.isna().any():
        raise ValueError(f"{path.name} has rows without a name in its first column.")
    return path, frame.assign(**{str(frame.columns[0]): names.to_numpy()})
