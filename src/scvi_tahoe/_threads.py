"""Threads of the processor: how many train a network fastest here and now; and how fast a device multiplies."""

from __future__ import annotations

import math
import os
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Iterator

#: variables by which users decide about threads
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_AT_IMPORT = torch.get_num_threads()
_GIVEN: list[int] = []  # number that a run file gives, while the run is carried out
#: a step of fewer operations is over before threads have met, and one of more keeps any number busy
_FEW, _MANY = 2e8, 5e10
#: threads that can share one in between
_SOME = 4
#: seconds of a measurement, and what more threads must gain in it to be worth it
_SECONDS, _WORTH = 0.05, 0.85


@contextmanager
def fitting_threads(device: torch.device, *, operations: float, n_cells: int, hidden: int) -> Iterator[int]:
    """Let torch use as many threads as suit the steps of a network, and as many as before afterwards.

    Threads wait for each other at the end of every operation. If another program holds the core of one of them, the
    others wait for it each time, and two threads can be many times slower than one. So small networks get one thread,
    and so do all while other programs want the cores; where that is not clear, both are tried for 50 ms, once in a
    process. A number of threads that the user chose, by ``OMP_NUM_THREADS`` or ``torch.set_num_threads``, stays.

    Parameters
    ----------
    device
        Where the network runs; on a GPU nothing changes.
    operations
        Operations of a step.
    n_cells, hidden
        Cells of a step and width of the network, whose products are tried.

    Yields
    ------
    The number of threads.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and before > 1 and not _user_chose():
        torch.set_num_threads(_best(before, operations, n_cells, hidden))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def solving_threads(n_rows: int, n_columns: int) -> Iterator[None]:
    """Let torch and BLAS use the threads that suit many small factorisations, and as many as before afterwards.

    Two threads factorise a matrix of 17 rows a hundred times slower than one, as they wait for each other, and larger
    ones so, too, while other programs want the cores. A number of threads that the user chose stays.

    Parameters
    ----------
    n_rows, n_columns
        Shape of the largest matrix, of which the products of rows with each other are factorised.
    """
    before, operations = torch.get_num_threads(), float(n_rows) ** 2 * max(n_rows, n_columns)
    n = before if operations > _MANY else min(before, _SOME)
    if before == 1 or _user_chose():
        yield
        return
    n = 1 if operations < _FEW or _free_cores() < n else n
    torch.set_num_threads(n)
    try:
        with _blas().limit(limits=n, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def given_threads(n: int) -> Iterator[None]:
    """Let torch use this many threads, which :func:`fitting_threads` does not change, and as many as before later."""
    before = torch.get_num_threads(), _GIVEN.copy()
    torch.set_num_threads(n)
    _GIVEN[:] = [n]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        _GIVEN[:] = before[1]


def _user_chose() -> bool:
    chose = bool(_GIVEN) or any(os.environ.get(name) for name in _VARIABLES)
    return chose or torch.get_num_threads() != _AT_IMPORT


def _best(most: int, operations: float, n_cells: int, hidden: int) -> int:
    if operations < _FEW or _free_cores() < most:
        return 1
    return most if operations > _MANY else _measured(most, n_cells, hidden)


def _free_cores() -> float:
    """Return the number of cores that no other program wants now; infinity where the system does not tell (Linux does).

    A trial alone does not see other programs if the scheduler happens to let both threads run meanwhile.
    """
    found = []
    for _ in range(5):
        try:
            with open("/proc/loadavg") as file:
                runnable = int(file.read().split()[3].split("/")[0])
        except OSError:
            return math.inf
        found.append((os.cpu_count() or 1) - (runnable - 1))  # this thread is one of them
        time.sleep(0.002)
    return sorted(found)[2]


@cache
def _measured(most: int, n_cells: int, hidden: int) -> int:
    """Return 1 or ``most``, whichever is faster, in turns: what else the machine does meets both."""
    generator = torch.Generator()  # what a run draws does not depend on what is measured
    cells, wide = (torch.randn(n, hidden, generator=generator) for n in (n_cells, 4 * hidden))
    spent, n = {1: 0.0, most: 0.0}, 0
    with torch.inference_mode():
        for threads in spent:  # threads start
            torch.set_num_threads(threads)
            _block(cells, wide)
        while sum(spent.values()) < _SECONDS or n < 3:
            n += 1
            for threads in spent:
                torch.set_num_threads(threads)
                start = time.perf_counter()
                _block(cells, wide)
                spent[threads] += time.perf_counter() - start
    return most if spent[most] < _WORTH * spent[1] else 1


def _block(cells: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Do what the feed-forward of a block does: products, and operations between them."""
    return F.layer_norm(cells + F.silu(F.linear(cells, wide)) @ wide, cells.shape[1:])


def product_rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product in one of Lightning's precisions, measured once."""
    in_16_bits = device.type == "cuda" and precision.startswith(("bf16", "16"))
    return _rate(device, torch.bfloat16 if in_16_bits else torch.float32, torch.get_num_threads())


@cache
def _rate(device: torch.device, dtype: torch.dtype, n_threads: int) -> float:
    side, repeats = (8192, 10) if device.type == "cuda" else (768, 3)
    generator = torch.Generator(device)
    with torch.inference_mode():
        a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
        product = torch.mm(a, b)
        float(product[0, 0])  # waits for the device
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b, out=product)
        float(product[0, 0])
    return 2.0 * side**3 * repeats / (time.perf_counter() - start)
