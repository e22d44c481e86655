from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from threadpoolctl import threadpool_info

from scvi_tahoe import _threads
from scvi_tahoe._threads import fitting_threads, given_threads, product_rate, solving_threads

CPU = torch.device("cpu")
SMALL = {"n_cells": 64, "hidden": 16}


@pytest.fixture
def free(monkeypatch):
    """Be a program whose user said nothing about threads, on a machine with three."""
    for name in _threads._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(_threads, "_AT_IMPORT", 3)
    monkeypatch.setattr(_threads, "_free_cores", lambda: 3.0)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("operations", "expected"), [(1e6, {1}), (1e12, {3}), (2e9, {1, 3})], ids=["few", "many", "?"])
def test_threads_suit_the_operations_of_a_step_and_are_given_back(operations, expected, free):
    with fitting_threads(CPU, operations=operations, **SMALL) as n:
        assert n == torch.get_num_threads()
        assert n in expected
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("shape", "cores", "expected"),
    [((17, 18_000), 3, 1), ((500, 2_000), 3, 3), ((500, 2_000), 2, 1)],
    ids=["few conditions", "many", "on a busy machine"],
)
def test_small_factorisations_and_those_on_a_busy_machine_have_one_thread(shape, cores, expected, free, monkeypatch):
    monkeypatch.setattr(_threads, "_free_cores", lambda: cores)
    with solving_threads(*shape):
        assert torch.get_num_threads() == expected
        assert all(pool["num_threads"] <= expected for pool in threadpool_info() if pool["user_api"] == "blas")
    assert torch.get_num_threads() == 3
    with given_threads(2), solving_threads(*shape):
        assert torch.get_num_threads() == 2


@pytest.mark.skipif(not os.path.exists("/proc/loadavg"), reason="only Linux tells how many programs want a core")
def test_one_thread_is_used_while_other_programs_want_the_cores(free, monkeypatch):
    monkeypatch.undo()  # the cores of this machine
    for name in _threads._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_threads, "_AT_IMPORT", 3)
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.2)
        with fitting_threads(CPU, operations=1e12, **SMALL) as n:
            assert n == 1
    finally:
        for process in neighbours:
            process.kill()
            process.wait()


def test_what_is_measured_is_measured_once(free):
    _threads._measured.cache_clear()
    found = set()
    for _ in range(3):
        with fitting_threads(CPU, operations=2e9, **SMALL) as n:
            found.add(n)
    assert len(found) == 1
    assert _threads._measured.cache_info().misses == 1


@pytest.mark.parametrize("how", ["a variable", "torch", "a run file", "a GPU"])
def test_a_number_that_the_user_chose_stays(how, free, monkeypatch):
    device = torch.device("cuda", 0) if how == "a GPU" else CPU
    if how == "a variable":
        monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "3")
    if how == "torch":
        torch.set_num_threads(2)
    with given_threads(2) if how == "a run file" else nullcontext():
        before = torch.get_num_threads()
        with fitting_threads(device, operations=1e6, **SMALL) as n:
            assert n == before > 1


def test_threads_are_given_back_after_an_error(free):
    with pytest.raises(ValueError, match="enough"), fitting_threads(CPU, operations=1e6, **SMALL):
        raise ValueError("enough")
    assert torch.get_num_threads() == 3


def test_the_rate_of_products_is_measured_once():
    assert product_rate(CPU, "32-true") == product_rate(CPU, "bf16-mixed") > 1e8
