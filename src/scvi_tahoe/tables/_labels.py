"""Labels of a screen found in a table: to the letter, or through aliases that the user has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import nearest_names
from scvi_tahoe.files import read_csv
from scvi_tahoe.tables._table import existing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: what the column of current names is called in files of HGNC, Ensembl and mygene
_CURRENT = ("symbol", "approved symbol", "gene name", "name")
_VERSION = re.compile(r"(ENS[A-Z]*[GTP]\d{11})\.\d+")


class MatchedTable(NamedTuple):
    """A table whose rows are labels of a screen, and how they were found."""

    table: pd.DataFrame
    """Rows of the labels that were found, in their order."""
    report: pd.DataFrame
    """For each label its ``name`` in the table, if any, and ``how`` it was found: exact, alias, missing."""


@checked()
def read_aliases(path: str | Path) -> dict[str, str]:
    """Read other names of genes: old symbols, synonyms, Ensembl identifiers.

    Parameters
    ----------
    path
        ``.csv`` or ``.tsv`` (``.txt``), one of:

        * a header with a column of current names (``symbol``), such as HGNC's ``hgnc_complete_set.txt`` or a table of
          mygene; every other column holds names of the same gene, several separated by ``|``
        * two columns: another name, and the current one

    Returns
    -------
    Current name by other name. Names that mean several genes are left out, and a current name always means itself.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it has neither form.
    """
    path = existing(path, "a table of aliases")
    frame = read_csv(path, dtype=str, sep="," if path.suffix == ".csv" else "\t", keep_default_na=False, na_values=[""])
    current = next((c for c in frame.columns if str(c).strip().lower() in _CURRENT), None)
    if current is None and frame.shape[1] == 2:
        current = frame.columns[1]
    if current is None:
        raise ValueError(
            f"{path.name} has no column symbol and not two columns; it has {list(map(str, frame.columns))}."
        )
    frame = frame[frame[current].notna()]
    pairs = [
        (other.strip(' "'), name)
        for column in frame.columns.drop(current)
        for values, name in zip(frame[column], frame[current], strict=True)
        if isinstance(values, str)
        for other in values.split("|")
    ]
    meanings = pd.DataFrame(pairs, columns=["other", "name"]).drop_duplicates()
    meanings = meanings[~meanings["other"].duplicated(keep=False) & ~meanings["other"].isin(set(frame[current]))]
    return dict(zip(meanings["other"], meanings["name"], strict=True))


@checked()
def match_labels(table: pd.DataFrame, labels: Iterable[str], aliases: Mapping[str, str] | None = None) -> MatchedTable:
    """Find labels of a screen in a table.

    A label is found if it matches exactly, or if it and a name of the table mean the same gene by ``aliases`` (in
    either direction). Versions of Ensembl identifiers are ignored.

    Parameters
    ----------
    table
        A table with unique names as index.
    labels
        Perturbations of a screen.
    aliases
        Current name by other name, see :func:`read_aliases`.

    Returns
    -------
    The rows found, and a report.

    Raises
    ------
    ValueError
        If names of the table are not unique, or no label is found.

    Examples
    --------
    >>> found = match_labels(table, adata.obs["gene"].unique(), read_aliases("hgnc_complete_set.txt"))  # doctest: +SKIP
    >>> found.report.query("how == 'missing'")  # doctest: +SKIP
    """
    if not table.index.is_unique:
        twice = [str(name) for name in table.index[table.index.duplicated()].unique()[:5]]
        raise ValueError(f"names of the table occur more than once: {twice}.")
    known = {str(name): name for name in table.index}
    by_meaning: dict[str, list[str]] = {}
    for name in known:
        by_meaning.setdefault(_meaning(name, aliases), []).append(name)
    rows = []
    for label in dict.fromkeys(map(str, labels)):
        same = by_meaning.get(_meaning(label, aliases), [])
        found_as = label if label in known else same[0] if len(same) == 1 else None
        how = "missing" if found_as is None else "exact" if found_as == label else "alias"
        rows.append((label, found_as, how))
    report = pd.DataFrame(rows, columns=["label", "name", "how"]).set_index("label")
    found = report[report["how"] != "missing"]
    if found.empty:
        near = nearest_names(rows[0][0], list(known)) if rows else ""
        raise ValueError(
            f"none of {len(rows)} labels is in the table: labels are e.g. {[r[0] for r in rows[:3]]}{near}, its names "
            f"e.g. {list(known)[:3]}; aliases= (read_aliases) translates."
        )
    matched = table.loc[[known[name] for name in found["name"]]].set_axis(found.index.rename("name"), axis=0)
    matched.attrs = dict(table.attrs)
    return MatchedTable(matched, report)


def _meaning(name: str, aliases: Mapping[str, str] | None) -> str:
    plain = match[1] if (match := _VERSION.fullmatch(name)) else name
    return plain if aliases is None else aliases.get(plain, plain)
