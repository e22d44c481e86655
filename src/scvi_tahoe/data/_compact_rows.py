"""CSR rows as small as they go, on any device, and how some of them become a dense tensor."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_MOST_16_BIT = 2**16
_LARGEST_HALF = 6e4
_KERNEL_BLOCK = 1024
_PROGRAMS_PER_PROCESSOR = 4


@cache
def kernel_runs_on(kind: str) -> bool:
    """Whether the Triton kernel can be used on this kind of device; elsewhere plain torch does the same, slower."""
    if kind != "cuda":
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        logger.info("Triton is not installed: rows are gathered by plain torch operations, which is slower.")
        return False
    return True


def fits_half(values: np.ndarray) -> bool:
    """Whether values are in the range of float16 (log1p of counts always is)."""
    if values.dtype == np.float16 or not values.size:
        return True
    return bool(max(abs(float(values.max())), abs(float(values.min()))) < _LARGEST_HALF)


def _tensor(array: np.ndarray) -> Tensor:
    """Return the array without a copy where torch allows it."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True)
class CompactRows:
    """A CSR matrix in 16-bit column numbers where these suffice, and float16 values where asked for."""

    indptr: Tensor  #: int64 ``[rows + 1]``: where the entries of each row begin
    #: int16 or int32 ``[entries]``: columns. Up to 65,536 columns fit into 16 bits, those above 32,767 as
    #: negative numbers.
    indices: Tensor
    values: Tensor  #: float16 or float32 ``[entries]``
    n_features: int  #: number of columns

    @classmethod
    def from_csr(cls, matrix: Any, *, half: bool) -> CompactRows:
        """Compact a scipy CSR matrix without duplicates; ``half`` rounds values, by at most 0.0005 of each."""
        narrow = matrix.shape[1] <= _MOST_16_BIT
        # torch converts on all cores; the narrowing of a column above 32,767 wraps, and the reader wraps it back
        return cls(
            indptr=_tensor(np.asarray(matrix.indptr)).to(torch.int64),
            indices=_tensor(matrix.indices).to(torch.int16 if narrow else torch.int32),
            values=_tensor(matrix.data).to(torch.float16 if half else torch.float32),
            n_features=matrix.shape[1],
        )

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Size."""
        return self.indptr.nbytes + self.indices.nbytes + self.values.nbytes

    def to(self, device: torch.device) -> CompactRows:
        """Move the rows to another device."""
        indptr, indices, values = (a.to(device, non_blocking=True) for a in (self.indptr, self.indices, self.values))
        return CompactRows(indptr, indices, values, self.n_features)

    def dense(
        self,
        rows: Tensor,
        device: torch.device,
        *,
        n_programs: int | None = None,
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return rows of any shape as dense ``[*rows.shape, n_features]`` on the device that holds their numbers.

        A GPU also reads entries in pinned main memory, over the bus. ``n_programs`` of the kernel run at once; if None,
        as many as fill the GPU. ``out`` is overwritten, if it has the shape and type of the result.
        """
        flat = rows.reshape(-1)
        if kernel_runs_on(device.type):
            n_programs = n_programs or _PROGRAMS_PER_PROCESSOR * _n_processors(device.index or 0)
            shape = *rows.shape, self.n_features
            if out is None or (out.shape, out.dtype, out.device) != (shape, dtype, device):
                out = torch.empty(shape, dtype=dtype, device=device)
            return self._by_kernel(flat, device, n_programs, out)
        return self._by_torch(flat, device, dtype).view(*rows.shape, self.n_features)

    def _by_kernel(self, flat: Tensor, device: torch.device, n_programs: int, out: Tensor) -> Tensor:
        from scvi_tahoe.data._gather_kernel import gather_rows

        if not len(flat):
            return out
        with torch.cuda.device(device):
            gather_rows[(min(len(flat), n_programs),)](
                flat, self.indptr, self.indices, self.values, out, len(flat), self.n_features,
                BLOCK=_KERNEL_BLOCK, N_BITS=16 if self.indices.dtype == torch.int16 else 32, num_warps=8,
            )  # fmt: skip
        return out

    def _by_torch(self, flat: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        starts = self.indptr[flat]
        counts = self.indptr[flat + 1] - starts
        ends = counts.cumsum(0)
        n = int(ends[-1]) if len(flat) else 0
        entry = torch.arange(n, device=device) + torch.repeat_interleave(
            starts - (ends - counts), counts, output_size=n
        )
        row = torch.repeat_interleave(torch.arange(len(flat), device=device), counts, output_size=n)
        columns = self.indices[entry].long()
        if self.indices.dtype == torch.int16:
            columns &= _MOST_16_BIT - 1
        out = torch.zeros(len(flat), self.n_features, dtype=dtype, device=device)
        out.view(-1)[row * self.n_features + columns] = self.values[entry].to(dtype)
        return out


@cache
def _n_processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
