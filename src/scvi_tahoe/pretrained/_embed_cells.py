"""Cells embedded by a State Embedding model: from counts to ``obsm["X_state"]``, in memory or from disk to disk."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from anndata import AnnData

from scvi_tahoe._arguments import checked
from scvi_tahoe._devices import HostCopy, device_of
from scvi_tahoe._messages import progress_bar, warn
from scvi_tahoe.data import open_cells
from scvi_tahoe.pretrained._embedding_file import PROVENANCE, embedding_file, verify_output
from scvi_tahoe.pretrained._gene_slots import (
    LARGEST_LOG,
    GeneMatch,
    InputScale,
    cell_generator,
    fill_slots,
    log_values,
    match_genes,
    slot_shares,
    taken_for_log,
)
from scvi_tahoe.pretrained._state_embedding import StateEmbedding, read_state_embedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from torch import Tensor

    from scvi_tahoe.nn import CellEncoder

#: Matrix products of the network: float32, float32 rounded to TF32, bfloat16. The last two differ on a GPU only.
Precision = Literal["32", "tf32", "bf16"]
_BLOCK = 512  # cells read at once to be embedded
_READ = 2**24  # values read at once to be verified
_SHOWN = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingReport:
    """What :func:`embed_cells` did: which genes were found, which slots were left to chance, with which model."""

    #: Name of the model and commit of the hub; file of its weights.
    source: str
    revision: str | None
    checkpoint: str
    #: Number of cells and width of their embeddings.
    shape: tuple[int, int]
    #: Genes found, where their names were, and names that the model's table lacks.
    n_genes: int
    gene_names: str
    missing: tuple[str, ...] = field(repr=False)
    #: Share of the values of all cells that lies in the genes found.
    matched_share: float
    #: How values were read, and the number of cells that look otherwise if judged by themselves.
    scale: InputScale
    n_ambiguous: int
    #: Cells without a count in any gene found. They are embedded, from genes drawn at random.
    empty_cells: tuple[str, ...] = field(repr=False)
    #: Slots of a cell; how many of them chance filled, for each cell, int64 ``[cells]``.
    n_slots: int
    random_slots: np.ndarray = field(repr=False)
    #: Random seed (None: no chance), number of draws, precision and kind of device.
    seed: int | None
    n_draws: int
    precision: Precision
    device: str
    #: What is known of the licence of weights and embeddings.
    licence: str

    def text(self) -> str:
        """Return the report as text, a line for each fact."""
        missing = f", {len(self.missing)} not: {_some(self.missing)}" if self.missing else ""
        lines = [
            f"{self.shape[0]:,} cells embedded in {self.shape[1]:,} numbers by {self.source} ({self.checkpoint})",
            f"{self.n_genes:,} genes found by {self.gene_names}, with {self.matched_share:.1%} of all values{missing}",
            f"{int(np.median(self.random_slots)):,} of {self.n_slots:,} slots left to chance in the median cell, at "
            f"most {int(self.random_slots.max()):,} (seed {self.seed}, draws: {self.n_draws})",
        ]
        if self.empty_cells:
            lines.append(
                f"{len(self.empty_cells):,} cells have no count in these genes, and their embeddings no meaning: "
                f"{_some(self.empty_cells)}"
            )
        return "\n".join([*lines, self.licence])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values to keep with the cells."""
        return {
            "source": self.source, "revision": self.revision or "", "checkpoint": self.checkpoint,
            "n_genes": self.n_genes, "gene_names": self.gene_names, "n_missing": len(self.missing),
            "matched_share": self.matched_share, "scale": self.scale, "n_empty_cells": len(self.empty_cells),
            "n_slots": self.n_slots, "median_random_slots": int(np.median(self.random_slots)),
            "most_random_slots": int(self.random_slots.max()), "seed": "none" if self.seed is None else self.seed,
            "n_draws": self.n_draws, "precision": self.precision, "device": self.device, "licence": self.licence,
        }  # fmt: skip


@checked()
def embed_cells(  # noqa: PLR0913
    adata: AnnData | str | Path,
    source: str | Path | StateEmbedding,
    checkpoint: str | None = None,
    *,
    output: str | Path | None = None,
    key: str = "X_state",
    layer: str | None = None,
    gene_key: str | None = None,
    aliases: Mapping[str, str] | None = None,
    protein_embeddings: str | Path | None = None,
    scale: InputScale = "counts",
    seed: int | None = 0,
    n_draws: int = 1,
    batch_size: int = 16,
    precision: Precision = "32",
    device: str = "auto",
    overwrite: bool = False,
    revision: str | None = None,
    accept_license: bool | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
) -> EmbeddingReport:
    """Embed cells with a State Embedding model (SE-600M, SE-100M), from their counts.

    ``setup_anndata(adata, ..., cell_embedding_key="X_state")`` uses the result. Expression is read in blocks of some
    hundred cells and may be larger than memory.

    The slots of a cell hold its most expressed genes. Ties are broken at random, so other seeds give other embeddings.
    Here a cell's embedding depends on its name, its values and the seed alone, not on other cells, their order or the
    batch size (to rounding).

    Parameters
    ----------
    adata
        Cells: an AnnData, in memory or backed, or the path of an h5ad file or a zarr folder.
    source, checkpoint, protein_embeddings, revision, accept_license, cache_dir, offline
        The model; see :func:`read_state_embedding`, whose result can be given as well.
    output
        If ``adata`` is a path: where to write a copy of the file with the embeddings in ``obsm`` (``.h5ad`` or
        ``.zarr``), or the embeddings alone (``.npy``). Written atomically.
    key
        Key of ``obsm``. An embedding of that name is replaced.
    layer
        Layer with the values. If None, ``X``.
    gene_key
        Column of ``var`` with the names of genes. If None, ``var_names`` or the column with most of the table's names.
    aliases
        Names in the table of protein embeddings, by names in the data. Other names must match exactly.
    scale
        What the values are:

        * ``'counts'`` - raw counts; anything else is refused
        * ``'log1p'`` - log1p of normalised counts; counts are refused
        * ``'per_cell'`` - decided for each cell from its values, as Arc's program does. It takes shallow cells of
          counts (largest count about 15 or lower) for logarithms, and negative values for zeros
    seed
        Random seed for the genes in the slots. If None, genes of equal value are taken in the order of the table.
    n_draws
        Number of draws of genes whose embeddings are averaged. Each costs the same time.
    batch_size
        Number of cells embedded at once; it has an effect on memory only.
    precision
        ``'32'``, ``'tf32'`` or ``'bf16'``. The last two are faster on a GPU; the user guide says what they cost.
    device
        ``'auto'``, ``'cpu'``, ``'cuda'``, ...
    overwrite
        Whether to replace ``output``.
    progress
        Whether to show progress bars.

    Returns
    -------
    What was done. ``uns["scvi_tahoe_embedding"][key]`` has a summary of it.

    Raises
    ------
    FileNotFoundError, FileExistsError, KeyError
        If a file or a layer does not exist, or the output does.
    LicenceNotAcceptedError
        If the licence of a download was not accepted.
    ValueError
        If values are not of the given scale, negative, or not finite; if hardly any gene is known to the model; or if
        an option is not allowed.
    MemoryError
        If the device has too little memory; the message says what to change.

    Examples
    --------
    >>> report = embed_cells(adata, "arcinstitute/SE-600M", layer="counts", accept_license=True)
    >>> TahoeST.setup_anndata(adata, "gene", "control", cell_embedding_key="X_state")
    """
    _verify_options(adata, output, scale, n_draws=n_draws, batch_size=batch_size, precision=precision)
    place = device_of(device, kinds=("cpu", "cuda", "mps"))
    if isinstance(adata, str | Path) and output is not None:
        verify_output(Path(adata), Path(output), overwrite=overwrite)

    def run(cells: _Cells, write: Any) -> EmbeddingReport:
        if not len(cells.names):
            raise ValueError(f"{cells.where} has no cells.")
        _verify_values(next(cells.blocks(_BLOCK, "", progress=False))[1], cells, 0, scale)  # before a download
        model = source
        if not isinstance(model, StateEmbedding):
            model = read_state_embedding(
                model, checkpoint, protein_embeddings=protein_embeddings, revision=revision,
                accept_license=accept_license, cache_dir=cache_dir, offline=offline,
            )  # fmt: skip
        genes = match_genes(cells.var, model.proteins, lender=model.lender, gene_key=gene_key, aliases=aliases)
        survey = _survey(cells, genes, scale, progress=progress)
        _warn(cells, genes, survey, scale)
        random_slots = np.zeros(len(cells.names), dtype=np.int64)
        report = EmbeddingReport(
            source=model.source, revision=model.revision, checkpoint=model.checkpoint,
            shape=(len(cells.names), model.network.config.width), n_genes=len(genes.columns), gene_names=genes.place,
            missing=genes.missing, matched_share=survey.matched_share, scale=scale, n_ambiguous=survey.n_ambiguous,
            empty_cells=survey.empty_cells, n_slots=model.n_slots, random_slots=random_slots, seed=seed,
            n_draws=n_draws, precision=precision, device=place.type, licence=model.licence,
        )  # fmt: skip
        draws = _Draws(genes, scale, model.n_slots, seed, n_draws)
        with write(report) as target, _matmul_precision(precision, place), _enough_memory(batch_size):
            _embed(cells, model, draws, target, random_slots, batch_size=batch_size, device=place, progress=progress)
        return report

    if isinstance(adata, AnnData):
        return run(_of_adata(adata, layer), lambda report: _into_obsm(adata, key, report))
    with open_cells(Path(adata), layer) as file:
        cells = _Cells(file.matrix, file.obs.index.astype(str), file.var, str(file.path))
        return run(cells, lambda report: _into_file(Path(adata), Path(str(output)), key, report))


def _verify_options(adata: Any, output: Any, scale: str, *, n_draws: int, batch_size: int, precision: str) -> None:
    for name, value, allowed in (("scale", scale, get_args(InputScale)), ("precision", precision, get_args(Precision))):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown; allowed are {', '.join(map(repr, allowed))}.")
    for name, number in (("n_draws", n_draws), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name}={number!r} must be 1 or more.")
    if isinstance(adata, AnnData) and output is not None:
        raise ValueError("output= is for cells in a file; the embeddings of an AnnData are put into its obsm.")
    if isinstance(adata, str | Path) and output is None:
        raise ValueError(f"output= is needed for cells in a file ({adata}): where to write the copy with embeddings.")


@dataclass(frozen=True)
class _Cells:
    """Cells to embed, of which rows are read."""

    matrix: Any
    names: pd.Index
    var: pd.DataFrame
    where: str

    def blocks(self, n_rows: int, what: str, *, progress: bool) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield the first row of each block, and the block; a bar shows the rate and the time left."""
        with progress_bar(
            total=len(self.names), desc=what, unit="cell", disable=not progress, dynamic_ncols=True
        ) as bar:
            for start in range(0, len(self.names), n_rows):
                block = sp.csr_matrix(self.matrix[start : start + n_rows])
                yield start, block
                bar.update(block.shape[0])


def _of_adata(adata: AnnData, layer: str | None) -> _Cells:
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer={layer!r} is not in layers; there are {[*filter(None, adata.layers)]}.")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ValueError("adata.X is None; name a layer with counts.")
    if sp.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    return _Cells(matrix, adata.obs_names.astype(str), adata.var, "adata.X" if layer is None else f"layer {layer!r}")


@dataclass(frozen=True)
class _Survey:
    """What one pass over the cells finds, before any is embedded."""

    matched_share: float
    n_ambiguous: int
    empty_cells: tuple[str, ...]


def _survey(cells: _Cells, genes: GeneMatch, scale: InputScale, *, progress: bool) -> _Survey:
    """Verify the values of all cells, and count."""
    total = matched = 0.0
    n_logs, empty, all_whole = 0, [], True
    for start, block in cells.blocks(max(1, _READ // len(cells.var)), "reading", progress=progress):
        _verify_values(block, cells, start, scale)
        all_whole = all_whole and not (block.data != np.round(block.data)).any()
        in_genes = np.asarray(block[:, genes.columns].sum(1), dtype=np.float64).ravel()
        total += float(block.sum())
        matched += float(in_genes.sum())
        empty += [str(name) for name in cells.names[start + np.flatnonzero(in_genes <= 0)]]
        n_logs += int(taken_for_log(block).sum())
    if len(empty) == len(cells.names):
        raise ValueError(f"{cells.where} has no count in any of the {len(genes.columns)} genes that the model knows.")
    if scale == "log1p" and all_whole:
        raise ValueError(f"{cells.where} holds whole numbers, as counts do, and scale='log1p'; give scale='counts'.")
    n_ambiguous = {"counts": n_logs, "log1p": len(cells.names) - n_logs, "per_cell": 0}[scale]
    return _Survey(matched / total, n_ambiguous, tuple(empty))


def _verify_values(block: sp.csr_matrix, cells: _Cells, start: int, scale: InputScale) -> None:
    data = block.data
    checks = [(~np.isfinite(data), "NaN or infinite values", "remove or impute them first")]
    if scale != "per_cell":
        checks.append((data < 0, "negative values", "scaled or corrected data cannot be embedded"))
    if scale == "counts":
        remedy = "name the layer with raw counts, or give scale='log1p' for log1p of normalised counts"
        checks.append((data != np.round(data), "values that are no whole numbers, so no counts", remedy))
    if scale == "log1p":
        remedy = "give scale='counts' if these are counts"
        checks.append((data > LARGEST_LOG, "values that no log1p of counts reaches", remedy))
    for wrong, what, remedy in checks:
        if len(found := np.flatnonzero(wrong)):
            row = int(np.searchsorted(block.indptr, found[0], side="right")) - 1
            name = str(cells.names[start + row])
            raise ValueError(f"{cells.where} has {what} (cell {name!r}: {data[found[0]]:.4g}); {remedy}.")


def _warn(cells: _Cells, genes: GeneMatch, survey: _Survey, scale: InputScale) -> None:
    if survey.matched_share < 0.5:
        warn(
            f"the model knows {len(genes.columns)} of {len(cells.var)} genes, with {survey.matched_share:.0%} of all "
            f"values; unknown are e.g. {_some(genes.missing)}. The embeddings say little about these cells."
        )
    if survey.empty_cells:
        warn(
            f"{len(survey.empty_cells):,} cells have no count in the genes that the model knows, e.g. "
            f"{_some(survey.empty_cells)}; they are embedded, which means nothing."
        )
    if survey.n_ambiguous and scale == "counts":
        logger.info(
            "%s of %s cells are so shallow that Arc's program would take their counts for logarithms; "
            "scale='per_cell' does as it does.", f"{survey.n_ambiguous:,}", f"{len(cells.names):,}",
        )  # fmt: skip


@dataclass(frozen=True)
class _Draws:
    """How the slots of cells are filled."""

    genes: GeneMatch
    scale: InputScale
    n_slots: int
    seed: int | None
    n_draws: int

    def slots(self, values_CG: np.ndarray, names: pd.Index, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the genes ``[C, T]`` in the slots of cells, the lender in the first, and how many chance filled."""
        slots_CT = np.zeros((len(names), self.n_slots), dtype=np.int64)
        slots_CT[:, 0] = self.genes.lender
        random_C = np.zeros(len(names), dtype=np.int64)
        for i, name in enumerate(names):
            generator = None if self.seed is None else cell_generator(name, self.seed, draw)
            slots_CT[i, 1:], random_C[i] = fill_slots(values_CG[i], self.n_slots - 1, generator)
        return slots_CT, random_C


@torch.inference_mode()
def _embed(
    cells: _Cells, model: StateEmbedding, draws: _Draws, target: Any, random_slots: np.ndarray, *, batch_size: int,
    device: torch.device, progress: bool,
) -> None:  # fmt: skip
    network: CellEncoder = model.network.to(device)
    proteins = np.stack([model.proteins[name] for name in draws.genes.names])
    genes_GD = torch.cat([network.encode_genes(part.to(device)) for part in torch.from_numpy(proteins).split(2048)])
    width, copy = network.config.width, HostCopy()
    for start, block in cells.blocks(max(1, _BLOCK // batch_size) * batch_size, "embedding", progress=progress):
        values_CG = log_values(block, draws.genes, draws.scale)
        rows = torch.empty(len(values_CG), width)
        for i in range(0, len(values_CG), batch_size):
            part = slice(i, i + batch_size)
            shares_CG, names = slot_shares(values_CG[part]), cells.names[start : start + len(values_CG)][part]
            total: Tensor | float = 0.0
            for draw in range(draws.n_draws):
                slots_CT, n_random = draws.slots(values_CG[part], names, draw)
                counts_CT = np.take_along_axis(shares_CG, slots_CT, axis=1)
                total = total + network(genes_GD, *(torch.from_numpy(x).to(device) for x in (slots_CT, counts_CT)))
            random_slots[start + i : start + i + len(names)] = n_random
            copy.start(_mean(total, draws.n_draws, network.config.n_output), rows[part])
        copy.finish()
        target[start : start + len(rows)] = rows.numpy()


def _mean(total: Any, n_draws: int, n_output: int) -> Tensor:
    """Return the mean of several draws, whose first part has length 1 again."""
    if n_draws == 1:
        return total
    return torch.cat([F.normalize(total[:, :n_output], dim=-1), total[:, n_output:] / n_draws], dim=-1)


@contextmanager
def _into_obsm(adata: AnnData, key: str, report: EmbeddingReport) -> Iterator[np.ndarray]:
    matrix = np.empty(report.shape, dtype=np.float32)
    yield matrix
    adata.obsm[key] = matrix
    adata.uns[PROVENANCE] = {**adata.uns.get(PROVENANCE, {}), key: report.to_dict()}


@contextmanager
def _into_file(data: Path, output: Path, key: str, report: EmbeddingReport) -> Iterator[Any]:
    with embedding_file(data, output, key, report.shape) as file:
        yield file.matrix
        file.provenance = report.to_dict()


@contextmanager
def _matmul_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and device.type != "mps"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _enough_memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        smaller = f"lower batch_size (now {batch_size})" if batch_size > 1 else "give device='cpu'"
        raise MemoryError(f"the device has too little memory to embed cells: {smaller}. ({error!s:.100})") from error


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
