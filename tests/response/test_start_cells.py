"""Control cells moved to a wanted mean: exact for any number of cells, with zeros and totals of real cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_tahoe.data import ControlProfile, StartTable, moved_to_mean

TOTAL = 200.0


@pytest.fixture(scope="module")
def cells():
    """Two groups of 300 cells x 40 genes with the same totals: controls, and cells in which some genes change."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 4.0, 40)
    rate[0] = 0.0

    def some(rate):
        counts = rng.poisson(rate * rng.gamma(4, 0.25, (300, 1)))
        return np.log1p(TOTAL * counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)

    changed = rate.copy()
    changed[:6] = rate[:6] * [0, 3, 0.2, 0, 1.5, 0.5] + [1, 0, 0, 0, 0, 0]
    return some(rate), some(changed)


def scaled(cells):
    """Cells whose totals differ."""
    return cells * np.random.default_rng(1).uniform(0.6, 1.4, (len(cells), 1)).astype(np.float32)


def moved(cells, want, profile, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return moved_to_mean(torch.from_numpy(cells), torch.from_numpy(want), profile, generator).numpy()


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_the_mean_is_the_wanted_one_for_any_number_of_cells(cells, n):
    controls, other = (scaled(group) for group in cells)
    profile, want = ControlProfile.of(controls), other.mean(0)
    assert np.isnan(profile.total)
    np.testing.assert_allclose(moved(controls[:n], want, profile).mean(0), want, atol=1e-5)


@pytest.mark.parametrize("n", [7, 50, 300])
def test_with_totals_of_controls_the_mean_is_the_wanted_one_too(cells, n):
    controls, other = cells
    profile, want = ControlProfile.of(controls), other.mean(0)
    found = moved(controls[:n], want, profile)
    np.testing.assert_allclose(np.expm1(found).sum(1), TOTAL, rtol=1e-5)
    np.testing.assert_allclose(found.mean(0), want, atol=1e-4)


def test_a_single_cell_keeps_the_total(cells):
    profile = ControlProfile.of(cells[0])
    found = moved(cells[0][:1], cells[1].mean(0), profile)
    np.testing.assert_allclose(np.expm1(found).sum(1), TOTAL, rtol=1e-5)


def test_zeros_are_those_of_real_cells(cells):
    controls, other = cells
    found = moved(controls, other.mean(0), ControlProfile.of(controls))
    assert abs((found == 0).mean() - (other == 0).mean()) < 0.02
    unchanged = slice(6, None)  # genes that do not change keep nearly all of their zeros
    assert ((found == 0) == (controls == 0))[:, unchanged].mean() > 0.97
    assert (found[:, 3] == 0).all()  # a gene that is wanted nowhere is nowhere
    assert 0 < (found[:, 0] > 0).mean() < 0.9  # a gene that no control expresses begins in some cells


@pytest.mark.parametrize("fold", [0.25, 0.6, 1.5, 4.0])
def test_as_many_cells_express_a_gene_as_do_at_the_new_mean(fold):
    """Of a rare gene a change of the mean is a change of that share, of one that all cells express it is not."""
    rng = np.random.default_rng(0)
    rate = np.geomspace(0.02, 20, 60)

    def some(rate):
        counts = rng.poisson(rate * rng.gamma(4, 0.25, (2000, 60)))
        return np.log1p(counts).astype(np.float32)

    controls, other = some(rate), some(fold * rate)
    found = moved(controls, other.mean(0), ControlProfile.of(controls))
    np.testing.assert_allclose((found > 0).mean(0), (other > 0).mean(0), atol=0.06)
    error = np.abs((found > 0).mean(0) - (other > 0).mean(0)).mean()
    assert error < 0.2 * np.abs((controls > 0).mean(0) - (other > 0).mean(0)).mean()


def test_genes_that_change_stay_correlated_with_others():
    rng = np.random.default_rng(0)
    activity = rng.normal(size=(1500, 1))
    counts = rng.poisson(np.exp(0.8 * activity * np.where(np.arange(40) < 20, 1, -1)))
    cells = np.log1p(counts).astype(np.float32)
    controls, donors = cells[:1000], cells[1000:]
    want = controls.mean(0)
    want[::2] *= 0.4
    found = moved(donors, want, ControlProfile.of(controls))

    def likeness(x):
        return np.abs(np.corrcoef(x.T)[np.triu_indices(40, 1)]).mean()

    assert likeness(found) > 0.8 * likeness(donors)


def test_nothing_but_the_means_of_the_cells_at_hand_is_changed_where_nothing_is_wanted(cells):
    controls = cells[0]
    found = moved(controls, controls.mean(0), ControlProfile.of(controls))
    np.testing.assert_allclose(found, controls, atol=1e-4)


@pytest.mark.parametrize("want", [np.zeros(40), np.full(40, 0.5)], ids=["nothing", "all alike"])
def test_odd_wishes_give_finite_cells(cells, want):
    found = moved(cells[0], want.astype(np.float32), ControlProfile.of(cells[0]))
    assert np.isfinite(found).all()
    assert (found >= 0).all()


GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_minibatches_have_the_wanted_means_on_average(device, dtype, cells):
    controls, other = cells
    table = StartTable(other.mean(0)[None], np.array([0]), [ControlProfile.of(controls)])
    sets = torch.from_numpy(controls[None]).to(device, dtype)
    found = torch.cat([table.cells(sets, torch.tensor([0]), seed)[0].float().cpu() for seed in range(20)]).numpy()
    np.testing.assert_allclose(found.mean(0), other.mean(0), atol=0.03)
    totals = torch.expm1(torch.from_numpy(found)).sum(1)
    assert totals.std() / totals.mean() < 0.03  # means of one set are exact, totals nearly
    again = table.cells(sets, torch.tensor([0]), 3)
    assert torch.equal(again, table.cells(sets, torch.tensor([0]), 3))
    assert not torch.equal(again, table.cells(sets, torch.tensor([0]), 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("alike", [True, False], ids=["one total", "several totals"])
def test_kernels_begin_and_cease_as_torch_does(cells, alike, monkeypatch):
    controls, other = cells
    if not alike:
        controls = controls * np.linspace(0.5, 1.5, len(controls), dtype=np.float32)[:, None]
    wanted = np.stack([other.mean(0), np.zeros(40, np.float32), controls.mean(0)])
    sets = torch.from_numpy(np.stack([controls[:250]] * 12)).cuda()
    condition = torch.arange(12) % 3
    found = []
    for by_kernels in (True, False):
        monkeypatch.setattr("scvi_tahoe.data._start_cells.kernel_runs_on", lambda _, answer=by_kernels: answer)
        table = StartTable(wanted, np.zeros(3, np.int64), [ControlProfile.of(controls)])
        found.append([table.cells(sets, condition, seed) for seed in range(10)])
    ours, torchs = (torch.stack(f).float().unflatten(1, (4, 3)).movedim(2, 0).flatten(1, 3) for f in found)
    for statistic in (lambda x: (x > 0).float().mean(1), lambda x: x.mean(1), lambda x: x.std(1)):
        torch.testing.assert_close(statistic(ours), statistic(torchs), rtol=0.05, atol=0.02)
    assert not ours[1].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_of_any_size_uses_the_kernel_that_is_compiled(cells, monkeypatch):
    triton, compiled = pytest.importorskip("triton"), []
    controls, other = cells
    table = StartTable(other.mean(0)[None], np.array([0]), [ControlProfile.of(controls[:299])])
    sets = torch.from_numpy(controls[None, :299]).cuda()
    table.cells(sets, torch.tensor([0]), 5)
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **_: compiled.append(1))
    for seed in (0, 1, 16, 2**31 - 1, 2**31, 2**31 + 3, 2**32 - 1):
        table.cells(sets, torch.tensor([0]), seed)
    assert not compiled
