"""Genes matched by name, never by position. Never edits the user's object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class GeneAlignment:
    """Which column of new data each gene of the model is in.

    Attributes
    ----------
    columns
        For each gene of the model its column in the data; -1 where the data lack it.
    missing
        Genes of the model that the data lack. They enter as zeros.
    surplus
        Number of genes in the data that the model does not know. They are left out.
    """

    columns: np.ndarray
    missing: tuple[str, ...]
    surplus: int

    @property
    def is_identity(self) -> bool:
        """Whether the data have exactly the model's genes in its order."""
        return self.surplus == 0 and np.array_equal(self.columns, np.arange(len(self.columns)))

    def apply(self, block: Any) -> Any:
        """Order the columns of a block of cells as the model does; dense stays dense, and CSR stays CSR."""
        if self.is_identity:
            return block
        if not self.missing:
            return block[:, self.columns]
        present = self.columns >= 0
        if sp.issparse(block):
            place = sp.csr_matrix(
                (np.ones(present.sum(), block.dtype), (self.columns[present], np.flatnonzero(present))),
                shape=(block.shape[1], len(self.columns)),
            )
            return (block @ place).tocsr()
        out = np.zeros((block.shape[0], len(self.columns)), dtype=block.dtype)
        out[:, present] = np.asarray(block)[:, self.columns[present]]
        return out

    def __str__(self) -> str:
        shown = ", ".join(self.missing[:5]) + (" ..." if len(self.missing) > 5 else "")
        missing = f", {len(self.missing)} missing and taken as zero ({shown})" if self.missing else ""
        return f"{len(self.columns) - len(self.missing)} genes matched by name{missing}, {self.surplus} left out"


def align_genes(
    model_genes: Sequence[str] | np.ndarray, data_genes: Sequence[str] | np.ndarray, *, max_missing: float = 0.1
) -> GeneAlignment:
    """Match the genes of data to those of a model; ValueError if a fraction above ``max_missing`` is missing."""
    position = {str(g): i for i, g in enumerate(data_genes)}
    columns = np.array([position.get(str(g), -1) for g in model_genes], dtype=np.int64)
    missing = tuple(str(g) for g, c in zip(model_genes, columns, strict=True) if c < 0)
    if len(missing) > max_missing * len(columns):
        raise ValueError(
            f"the data lack {len(missing)} of the model's {len(columns)} genes, e.g. {list(missing[:3])}"
            f"{nearest_names(missing[0], list(position)[:20000])}; the data have e.g. {list(position)[:3]}. "
            "Bring the gene names to the model's identifiers, or accept zeros with max_missing_genes (now "
            f"{max_missing:g})."
        )
    return GeneAlignment(columns, missing, len(data_genes) - int((columns >= 0).sum()))
