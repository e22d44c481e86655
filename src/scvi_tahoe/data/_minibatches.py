"""Minibatches of a screen: what a model fixes about its data, the cells that a sampler chose as tensors, and loaders.

S sets, N cells of a set, X width of a cell at the network's input or output, G genes, E width of a cell embedding,
P width of a perturbation embedding.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field, fields, replace
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.data._matrix import DiskRows, align_genes, in_memory, is_sharded
from scvi_tahoe.data._sampler import CellSetRequest, FixedSampler, RandomSampler, SetPlan
from scvi_tahoe.data._store import make_store, sent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from scvi_tahoe.data._matrix import GeneAlignment
    from scvi_tahoe.data._perturbations import EmbeddingTable
    from scvi_tahoe.data._screen import Condition, Screen, ScreenKeys
    from scvi_tahoe.data._splits import AssignedSplit
    from scvi_tahoe.data._start_cells import StartTable
    from scvi_tahoe.data._store import CellStore, StoreKind


Representation = Literal["expression", "embedding", "expression+embedding"]
REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)
Output = Literal["expression", "delta", "counts", "embedding", "prior"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
START_SEED = "start_seed"  # of the random numbers of start cells


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model fixes about its data."""

    keys: ScreenKeys  #: where a screen keeps its parts
    genes: np.ndarray  #: names of the genes, ``[G]``, in the network's order
    table: EmbeddingTable  #: perturbation embeddings, ``[labels, P]``
    batches: tuple[str, ...] | None  #: technical batches as the network counts them; None if it does not look at them
    representation: Representation  #: what the network takes in and gives out
    set_size: int  #: cells of a set
    #: what stands for batches that the network has not seen, as it counts them
    new_batches: Mapping[str, int] = field(default_factory=dict)

    def with_composed(self, screen: Screen) -> DataSpec:
        """Add table rows for combinations and doses of a screen, as far as their components have rows."""
        return replace(self, table=self.table.with_composed(screen.perturbation.names))

    def rows_of_labels(self, screen: Screen) -> np.ndarray:
        """Row of the embedding table for each perturbation code of a screen, int64 ``[codes]``."""
        table = self.table.with_composed(screen.perturbation.names)
        return np.array([table.row(name) for name in screen.perturbation.names])

    def batch_of_cell(self, screen: Screen) -> np.ndarray | None:
        """Technical batch of each cell as the network counts them, int64 ``[cells]``; None if it does not look."""
        if self.batches is None:
            return None
        known = {**{name: i for i, name in enumerate(self.batches)}, **self.new_batches}
        if screen.batch is None or (unknown := [n for n in screen.batch.names if n not in known]):
            missing = "no batches" if screen.batch is None else f"batches that the model does not know: {unknown[:5]}"
            raise ValueError(
                f"the network was trained with {len(known)} technical batches; the data have {missing}. "
                "predict(new_batches='mean') or 'nearest' lets known batches stand for new ones."
            )
        return np.array([known[n] for n in screen.batch.names], dtype=np.int64)[screen.batch.codes]


@dataclass(eq=False, kw_only=True)
class CellSetDataset(Dataset):
    """Reads the cells that a request names.

    ``dataset[request]`` runs in the loader and holds what :class:`CellStore` hands over; :meth:`to_tensors` finishes
    the minibatch on the device.
    """

    cells: CellStore  #: what the network takes in and gives out: expression, or cell embeddings
    table: np.ndarray  #: float32 ``[labels, P]`` perturbation embeddings
    genes: CellStore | None = None  #: expression in addition to embeddings, for a gene decoder; None otherwise
    #: cell embeddings in addition to expression, as an auxiliary signal; None otherwise
    embedding: CellStore | None = None
    #: technical batch of every cell as the network counts them; None if it does not look
    batch_of_cell: np.ndarray | None = None
    #: the cells of a prior, to which the network's change is added; None without such a prior
    residual_input: CellStore | None = None
    #: rows of ``residual_input`` that each condition draws from
    residual_input_rows: Mapping[Condition, np.ndarray] | None = None
    #: float32 ``[conditions, X]``: change of the mean that a prior adds to the controls; None without such a
    #: prior
    residual_shift: np.ndarray | None = None
    #: wanted means to which control cells are moved on the device, which the network corrects; None without them
    start: StartTable | None = None
    #: by key of the minibatch, what the objective compares with: float32 ``[conditions, X]`` each
    of_condition: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # pandas hands out arrays that may not be written to, and torch warns of them
        self._table: Tensor = torch.from_numpy(np.require(self.table, requirements="W"))
        by_condition = dict(self.of_condition)
        if self.residual_shift is not None:
            by_condition[TENSORS.RESIDUAL_SHIFT] = self.residual_shift
        self._of_condition = {key: torch.from_numpy(rows) for key, rows in by_condition.items()}

    @property
    def expression(self) -> CellStore:
        """Expression of the cells, also where the network works on embeddings."""
        return self.genes or self.cells

    @property
    def stores(self) -> list[CellStore]:
        """All stores that minibatches are read from."""
        return [s for s in (self.cells, self.genes, self.embedding, self.residual_input) if s is not None]

    @property
    def _store_of(self) -> dict[str, CellStore | None]:
        """Store that each key of a minibatch is read from."""
        return {
            TENSORS.CONTROL: self.cells,
            TENSORS.OBSERVED: self.cells,
            TENSORS.OBSERVED_GENES: self.genes,
            TENSORS.OBSERVED_EMBEDDING: self.embedding,
            TENSORS.RESIDUAL_INPUT: self.residual_input,
        }

    def _reads(self, request: CellSetRequest) -> list[tuple[str, CellStore, np.ndarray]]:
        """List key, store and rows of everything that a minibatch reads."""
        rows_of = {TENSORS.CONTROL: request.control_SN, TENSORS.RESIDUAL_INPUT: request.residual_input_SN}
        reads = ((key, store, rows_of.get(key, request.observed_SN)) for key, store in self._store_of.items())
        return [(key, store, rows) for key, store, rows in reads if store is not None and rows is not None]

    def __getitem__(self, request: CellSetRequest) -> dict[str, Any]:
        payload: dict[str, Any] = {key: store.fetch(rows) for key, store, rows in self._reads(request)}
        payload[TENSORS.PERTURBATION] = torch.from_numpy(request.perturbation_S)
        payload[TENSORS.CONDITION] = torch.from_numpy(request.condition_S)
        if self.batch_of_cell is not None:
            # the batch of the predicted cells: that of the observed ones, else of those that the prediction starts from
            rows = request.control_SN if request.observed_SN is None else request.observed_SN
            payload[TENSORS.BATCH] = torch.from_numpy(self.batch_of_cell[rows])
        if self.start is not None:
            payload[START_SEED] = zlib.crc32(np.ascontiguousarray(request.control_SN))
        return payload

    def prefetch(self, request: CellSetRequest) -> None:
        """Let the stores begin to read what is asked for soon."""
        for _, store, rows in self._reads(request):
            store.prefetch(rows)

    def to_tensors(
        self,
        payload: dict[str, Any],
        device: torch.device,
        *,
        compact: bool = False,
        previous: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Finish a minibatch on the device; its keys name its shapes.

        With ``compact``, cells that their store holds in float16 stay so; otherwise every cell is float32. The
        cells of the minibatch ``previous``, which nobody needs any more, may be overwritten.
        """
        out = previous or {}
        tensors = {
            key: store.compact(payload[key], device, out.get(key)) if compact else store.dense(payload[key], device)
            for key, store in self._store_of.items()
            if store and key in payload
        }
        if self._table.device != device:
            self._table = self._table.to(device)
        for key, rows in self._of_condition.items():
            if rows.device != device:
                self._of_condition[key] = rows = rows.to(device)
            tensors[key] = rows[sent(payload[TENSORS.CONDITION], device)]
        if self.start is not None and START_SEED in payload:
            tensors[TENSORS.RESIDUAL_INPUT] = self.start.cells(
                tensors[TENSORS.CONTROL], payload[TENSORS.CONDITION], payload[START_SEED],
                out.get(TENSORS.RESIDUAL_INPUT),
            )  # fmt: skip
        for key in (TENSORS.CONDITION, TENSORS.BATCH):
            if key in payload:
                tensors[key] = sent(payload[key], device)
        tensors[TENSORS.PERTURBATION] = self._table[sent(payload[TENSORS.PERTURBATION], device)]
        return tensors


def cell_set_dataset(
    spec: DataSpec,
    screen: Screen,
    device: torch.device,
    *,
    store: StoreKind = "auto",
    alignment: GeneAlignment | None = None,
    full_precision: bool = False,
    pinned_rows: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> CellSetDataset:
    """Make the dataset of a screen's minibatches; options as of :func:`make_store`, genes are matched by name."""
    alignment = alignment or align_genes(spec.genes, screen.genes)
    order = None if alignment.is_identity else alignment
    options: dict[str, Any] = {"full_precision": full_precision, "pinned_rows": pinned_rows, "rows": rows}
    expression = make_store(screen.expression, device, kind=store, alignment=order, **options)
    embedding = None if spec.representation == "expression" else make_store(screen.cell_embedding, device)
    embeds = spec.representation == "embedding"
    return CellSetDataset(
        cells=embedding if embeds and embedding else expression,
        genes=expression if embeds else None,
        embedding=embedding if spec.representation == "expression+embedding" else None,
        table=spec.table.matrix,
        batch_of_cell=spec.batch_of_cell(screen),
    )


def random_minibatches(
    spec: DataSpec, screen: Screen, device: torch.device, *, n_sets: int, seed: int, as_controls: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield minibatches of random sets of any perturbed cells.

    With ``as_controls``, each set gets the control's embedding instead of its perturbation's.
    """
    spec, index = spec.with_composed(screen), screen.index
    plan = SetPlan(
        index=index,
        pools=index.control_pools(),
        row_of_label=spec.rows_of_labels(screen),
        rows=np.flatnonzero(~index.is_control),
        set_size=spec.set_size,
        sets_per_step=min(8, n_sets),
    )
    dataset = cell_set_dataset(spec, screen, device)
    for request in RandomSampler(plan, n_steps=-(-n_sets // plan.sets_per_step), seed=seed):
        if as_controls:
            control = spec.table.row(screen.control)
            request = replace(request, perturbation_S=np.full_like(request.perturbation_S, control))
        yield dataset.to_tensors(dataset[request], device)


def aligned_expression(spec: DataSpec, screen: Screen) -> Any:
    """Expression of the whole screen by rows, in the model's gene order: in memory, unless the store is on disk."""
    alignment = align_genes(spec.genes, screen.genes, max_missing=1.0)
    if is_sharded(screen.expression):
        return DiskRows(screen.expression, alignment)
    return alignment.apply(in_memory(screen.expression))


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How minibatches are made."""

    set_size: int  #: N, cells of a set
    batch_size: int  #: S, sets of a training minibatch
    steps_per_epoch: int  #: training minibatches between two validations, on each device
    validation_sets: int = 4  #: at most this many sets of a condition in validation
    seed: int = 0  #: random seed for drawing cells and their controls

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "seed" and (not isinstance(value, int | np.integer) or value < 1):
                raise ValueError(f"{f.name}={value!r} must be a whole number of 1 or more.")


@dataclass(eq=False, repr=False)
class PrefetchSampler(Sampler[CellSetRequest]):
    """Yields this process's share of another sampler's minibatches, and lets the dataset prefetch ``n_ahead`` of them.

    Every process draws the same minibatches and takes every ``n_ranks``-th: together they train on what one would.
    """

    _sampler: Any
    _dataset: CellSetDataset
    rank: int = 0
    n_ranks: int = 1
    n_ahead: int = 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this, also after resuming."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._sampler) // self.n_ranks)

    def __iter__(self) -> Iterator[CellSetRequest]:
        # where the processes do not come out even, the first minibatches come twice: all must take as many steps
        requests: Iterator[CellSetRequest] = iter(self._sampler)
        if len(self._sampler) % self.n_ranks:
            requests = chain(requests, cycle(self._sampler))
        mine = islice(requests, self.rank, len(self) * self.n_ranks, self.n_ranks)
        waiting = deque(islice(mine, 1))  # the first one is fetched at once
        while waiting:
            for following in islice(mine, self.n_ahead + 1 - len(waiting)):
                self._dataset.prefetch(following)
                waiting.append(following)
            yield waiting.popleft()


class CellSetDataModule(LightningDataModule):
    """Loaders of cell sets for training and validation.

    ``row_of_label`` is the row of the embedding table for each perturbation code of the screen.
    """

    def __init__(
        self, dataset: CellSetDataset, split: AssignedSplit, row_of_label: np.ndarray, config: LoaderConfig
    ) -> None:
        super().__init__()
        self.dataset, self.split, self.config = dataset, split, config
        # scvi-tools copies these to the model, and its MLflow logger reads them
        self.train_idx, self.val_idx, self.test_idx = split.train, split.validation, split.test
        self.n_train, self.n_val = len(split.train), len(split.validation)
        self.train_size = self.n_train / max(1, self.n_train + self.n_val + len(split.test))
        self.data_loader_kwargs: dict[str, Any] = {}
        #: the last training minibatch, in whose memory the next one is made
        self._last: dict[str, Tensor] = {}
        self._plan = SetPlan(
            index=split.index,
            pools=split.index.control_pools(),
            row_of_label=row_of_label,
            rows=split.train,
            set_size=config.set_size,
            sets_per_step=config.batch_size,
            residual_input_rows=dataset.residual_input_rows,
        )

    def train_dataloader(self) -> DataLoader:
        """Load random sets, drawn anew at every epoch."""
        n_steps = self.config.steps_per_epoch * self._n_ranks
        return self._loader(RandomSampler(self._plan, n_steps=n_steps, seed=self.config.seed))

    def val_dataloader(self) -> DataLoader | list:
        """Load the same sets at every validation; no loader if the split holds nothing out."""
        if self.n_val == 0:
            return []
        plan = replace(self._plan, rows=self.split.validation)
        return self._loader(
            FixedSampler(plan, max_sets=self.config.validation_sets, seed=self.config.seed, n_ranks=self._n_ranks)
        )

    @property
    def _n_ranks(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _loader(self, sampler: Sampler[CellSetRequest]) -> DataLoader:
        """Load this process's share of the minibatches."""
        rank = 0 if self.trainer is None else self.trainer.global_rank
        n_ahead = max(store.prefetch_factor for store in self.dataset.stores)
        sampler = PrefetchSampler(sampler, self.dataset, rank=rank, n_ranks=self._n_ranks, n_ahead=n_ahead)
        # every pass over a loader draws a number for worker processes; from a generator of its own, or dropout after an
        # interruption would not be what it is without one
        return DataLoader(self.dataset, sampler=sampler, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, dataloader_idx: int) -> Any:
        """Finish the minibatch on the device that the network runs on."""
        # float16 and bfloat16 add up to float32, as float32 and bfloat16 do; with no other precision is that so
        compact = self.trainer is not None and self.trainer.precision == "bf16-mixed"
        if self.trainer is None or not self.trainer.training:
            return self.dataset.to_tensors(batch, device, compact=compact)
        self._last = self.dataset.to_tensors(batch, device, compact=compact, previous=self._last)
        return self._last

    def teardown(self, stage: str) -> None:
        """Give the memory of the last minibatch back."""
        self._last = {}
