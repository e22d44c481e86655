"""What an evaluation costs at 18,080 genes x 50 perturbations x 200 cells (and 200 controls).

``python benchmarks/evaluate_cost.py quick`` times ``preset="quick"``; ``... vcc2025`` the second model against one
truth and, in a process where everything is compiled, a direct call of cell-eval; ``... memory ours``, ``memory all``
(with a baseline and the ceiling) and ``memory direct`` the peak of resident memory over the two matrices, each in a
process of its own.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import warnings

import anndata
import numpy as np
import pandas as pd

from scvi_tahoe.evaluate import EvaluationReference, evaluate

N_GENES, N_PERTURBATIONS, N_CELLS = 18_080, 50, 200


def screen(seed, n_genes=N_GENES):
    """Poisson-gamma counts, normalised to 10,000, log1p, dense float32; effects are the same for all seeds."""
    effect_rng, rng = np.random.default_rng(0), np.random.default_rng(seed)
    base = effect_rng.gamma(0.35, 3.0, n_genes)
    # filled in place, so that the peak of memory is that of the matrix
    expression, labels = np.empty(((N_PERTURBATIONS + 1) * N_CELLS, n_genes), dtype=np.float32), []
    for index in range(N_PERTURBATIONS + 1):
        change = np.ones(n_genes)
        if index:
            moved = effect_rng.choice(n_genes, min(300, n_genes // 4), replace=False)
            change[moved] = np.exp(effect_rng.normal(0, 0.7, len(moved)))
        rate = base * change * rng.gamma(8, 1 / 8, (N_CELLS, 1))
        counts = rng.poisson(rate).astype(np.float32)
        normalised = counts * (1e4 / counts.sum(axis=1, keepdims=True))
        expression[index * N_CELLS : (index + 1) * N_CELLS] = np.log1p(normalised)
        labels += ["control" if index == 0 else f"gene_{index}"] * N_CELLS
    obs = pd.DataFrame({"target": pd.Categorical(labels)}, index=[f"cell_{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)])
    return anndata.AnnData(expression, obs=obs, var=var)


def reference_of(truth):
    """The truth, without what several models share."""
    return EvaluationReference.from_adata(truth, perturbation_key="target", control="control", ceiling=False)


def seconds(call, repeats):
    """Wall and CPU seconds of each call; on a busy machine the CPU seconds repeat, the wall does not."""
    times = []
    for _ in range(repeats):
        start = np.array([time.perf_counter(), time.process_time()])
        call()
        times.append(np.array([time.perf_counter(), time.process_time()]) - start)
    return np.array(times)


def quick():
    """First and later evaluations without differential expression."""
    truth, prediction = screen(1), screen(2)
    reference = reference_of(truth)
    times = seconds(lambda: evaluate(prediction, reference, preset="quick", baselines=False, baseline=None), 6)
    wall, cpu = np.median(times[1:], axis=0)
    print(f"quick: first {times[0, 0]:.2f} s (CPU {times[0, 1]:.2f}), later median of 5 {wall:.2f} s (CPU {cpu:.2f})")


def direct(prediction, truth):
    """cell-eval as its documentation says."""
    from cell_eval import MetricsEvaluator

    with tempfile.TemporaryDirectory() as folder:
        evaluator = MetricsEvaluator(
            prediction, truth, control_pert="control", pert_col="target", outdir=f"{folder}/out"
        )
        return evaluator.compute("vcc", write_csv=False)


def vcc2025(repeats="3"):
    """A second model, against a direct call; both compiled."""
    repeats = int(repeats)
    truth, prediction = screen(1), screen(2)
    reference = reference_of(truth)
    small = screen(3, n_genes=200)
    evaluate(small, reference_of(small), preset="vcc2025", baselines=False, baseline=None)  # compiles
    evaluate(prediction, reference, preset="vcc2025", baselines=False, baseline=None)
    ours = seconds(
        lambda: evaluate(screen_again(prediction), reference, preset="vcc2025", baselines=False, baseline=None), repeats
    )
    theirs = seconds(lambda: direct(prediction.copy(), truth.copy()), repeats)
    mine, direct_call = np.median(ours, axis=0), np.median(theirs, axis=0)
    share = mine / direct_call
    print(f"vcc2025, second model: {mine[0]:.1f} s (CPU {mine[1]:.1f})")
    print(f"direct call of cell-eval: {direct_call[0]:.1f} s (CPU {direct_call[1]:.1f})")
    print(f"share: {share[0]:.2f} (CPU {share[1]:.2f})")


def screen_again(prediction):
    """The same cells in another object, as a second model's would be."""
    return anndata.AnnData(prediction.X, obs=prediction.obs, var=prediction.var)


def memory(who):
    """Peak of resident memory above the process with both matrices loaded, in units of one matrix."""
    small = screen(3, n_genes=200)
    evaluate(
        small, reference_of(small), preset="vcc2025", baselines=False, baseline=None
    )  # libraries and compiled code are no matrices
    truth, prediction = screen(1), screen(2)
    one = truth.X.nbytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if who == "ours":
        evaluate(prediction, reference_of(truth), preset="vcc2025", baselines=False, baseline=None)
    elif who == "all":
        reference = EvaluationReference.from_adata(truth, perturbation_key="target", control="control")
        evaluate(prediction, reference, preset="vcc2025", baselines=False, baseline="control")
    else:
        direct(prediction, truth)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"memory {who}: both matrices and {(after - before) / one:.2f} of one ({after / 2**30:.2f} GiB in all)")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    name, *rest = sys.argv[1:] or ["quick"]
    {"quick": quick, "vcc2025": vcc2025, "memory": memory}[name](*rest)
