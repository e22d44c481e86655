"""Differential expression on a GPU: chosen where it can run, refused where it cannot, and equal where it does."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch

from scvi_tahoe.evaluate import EvaluationReference, evaluate
from scvi_tahoe.evaluate._differential_expression import chosen_backend


@pytest.fixture
def installed(monkeypatch):
    """gpudge is there, whatever this machine has."""
    module = ModuleType("gpudge")
    module.__spec__ = ModuleSpec("gpudge", None)
    monkeypatch.setitem(sys.modules, "gpudge", module)


def test_an_unknown_backend_is_refused_with_those_there_are(task, keys):
    with pytest.raises(ValueError, match="'cuda' is unknown; allowed are 'auto', 'cpu', 'gpu'"):
        EvaluationReference.from_adata(task.held_out, de_backend="cuda", **keys)


def test_without_gpudge_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpudge", None)
    with pytest.raises(ImportError, match=r'pip install "scvi-tahoe\[gpu\]"'):
        chosen_backend("gpu")
    assert chosen_backend("auto") == "cpu"


def test_without_a_device_the_gpu_is_refused_and_auto_takes_the_cpu(monkeypatch, installed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        chosen_backend("gpu")
    assert chosen_backend("auto") == "cpu"


def test_auto_takes_the_gpu_where_there_is_one_and_the_cpu_stays_the_cpu(monkeypatch, installed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_backend("auto") == chosen_backend("gpu") == "gpu"
    assert chosen_backend("cpu") == "cpu"


def test_the_result_says_where_it_was_tested(result, quick):
    assert result.provenance["de_backend"] in ("cpu", "gpu")
    assert quick.provenance["de_backend"] is None


@pytest.mark.gpu
def test_ranks_and_scores_are_those_of_the_cpu(task, keys, predicted):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("gpudge")
    results = {}
    for backend in ("cpu", "gpu"):
        reference = EvaluationReference.from_adata(
            task.held_out, baseline_from=task.train, ceiling=False, de_backend=backend, **keys
        )
        results[backend] = evaluate(predicted, reference, preset="full")
    for side in ("de_observed", "de_predicted"):
        cpu, gpu = (getattr(results[b], side).set_index(["perturbation", "gene"]).sort_index() for b in ("cpu", "gpu"))
        np.testing.assert_allclose(gpu["p_value"], cpu["p_value"], rtol=1e-9)
        np.testing.assert_array_equal(gpu["fdr"] < 0.05, cpu["fdr"] < 0.05)
        np.testing.assert_array_equal(gpu["log2_fold_change"], cpu["log2_fold_change"])
        ranks = [table["p_value"].groupby("perturbation").rank() for table in (cpu, gpu)]
        np.testing.assert_array_equal(*ranks)
    np.testing.assert_allclose(
        results["gpu"].summary["value"].astype(float), results["cpu"].summary["value"].astype(float), rtol=1e-6
    )
