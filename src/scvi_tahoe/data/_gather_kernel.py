"""One Triton kernel: rows of a compact CSR matrix, written as dense rows. Imported only where a GPU runs it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_rows(  # type: ignore[no-untyped-def]  # noqa: ANN202
    rows,  # noqa: ANN001  Triton reads annotations of its own only
    indptr,  # noqa: ANN001
    indices,  # noqa: ANN001
    values,  # noqa: ANN001
    out,  # noqa: ANN001
    n_rows,  # noqa: ANN001
    n_features,  # noqa: ANN001
    BLOCK: tl.constexpr,
    N_BITS: tl.constexpr,
):
    """Write row ``rows[i]`` into ``out[i]``, each program every so many rows.

    A program clears its dense row and fills it at once, while it is still in the cache.
    """
    lane = tl.arange(0, BLOCK)
    nothing = tl.zeros((BLOCK,), out.dtype.element_ty)
    length = tl.zeros((), tl.int64) + n_features  # places in ``out`` need 64 bits
    for position in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        target = out + position * length
        for first in range(0, n_features, BLOCK):
            tl.store(target + first + lane, nothing, mask=first + lane < n_features)
        row = tl.load(rows + position).to(tl.int64)
        start = tl.load(indptr + row)
        n_entries = (tl.load(indptr + row + 1) - start).to(tl.int32)
        # threads of the program write each other's places
        tl.debug_barrier()
        for first in range(0, n_entries, BLOCK):
            here = first + lane < n_entries
            column = tl.load(indices + start + first + lane, mask=here, other=0).to(tl.int32)
            if N_BITS == 16:
                column = column & 0xFFFF
            value = tl.load(values + start + first + lane, mask=here, other=0.0)
            tl.store(target + column, value.to(out.dtype.element_ty), mask=here)
