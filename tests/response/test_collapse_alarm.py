"""The alarm on predictions that are the same for all perturbations rings for these, and not for what noise explains."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scvi_tahoe import TahoeEnsemble
from scvi_tahoe.data import Condition, LabelParser, ScreenKeys, make_store, read_screen
from scvi_tahoe.evaluate import EvaluationWarning
from scvi_tahoe.response import CollapseAlarm, observed_likeness

CPU = torch.device("cpu")
PARSER = LabelParser(control="control")
N_GENES, N_CONTROLS, N_CELLS = 300, 60, 45


class Screens:
    """Twenty perturbations of one context, each with effect ``shared + own``, few cells and fewer controls."""

    def __init__(self, *, shared=0.0, own=0.0, noise=0.5, family=1, seed=0):
        rng = np.random.default_rng(seed)
        common = shared * rng.normal(size=N_GENES)
        self.names = [f"P{i:02}" for i in range(20)]
        self.effects = common + own * rng.normal(size=(20, N_GENES))
        self.effects[:family] = self.effects[0]
        self.common = common
        control = 3 + noise * rng.normal(size=(N_CONTROLS, N_GENES))
        treated = [3 + effect + noise * rng.normal(size=(N_CELLS, N_GENES)) for effect in self.effects]
        labels = np.repeat(["control", *self.names], [N_CONTROLS, *[N_CELLS] * 20])
        adata = AnnData(
            np.vstack([control, *treated]).astype(np.float32),
            obs=pd.DataFrame({"p": labels, "c": "X"}, index=[f"cell_{i}" for i in range(len(labels))]),
        )
        self.screen = read_screen(adata, ScreenKeys(perturbation_key="p", control="control", context_key="c"))
        self.store = make_store(adata.X, CPU)
        self.observed_means = np.stack([np.mean(cells, axis=0) for cells in treated])
        self.control_mean = control.mean(axis=0)

    def alarm(self, *, output="expression"):
        index = self.screen.index
        rows = np.flatnonzero(~index.is_control)
        likeness = observed_likeness(self.store, index, rows, CPU, parser=PARSER, seed=0)
        return CollapseAlarm(self.store, CPU, likeness, PARSER, output)

    def messages(self, effects, **options):
        """What is said of control cells with these effects."""
        alarm, controls = self.alarm(**options), self.screen.index.controls("X")
        start = self.store.dense(self.store.fetch(controls), CPU).numpy()
        for name, effect in zip(self.names, effects, strict=False):
            alarm.see(start + effect, [Condition("X", name)], [controls])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            alarm.ring()
        return [str(w.message) for w in caught if issubclass(w.category, EvaluationWarning)]


@pytest.mark.parametrize("seed", range(3))
def test_effects_without_the_noise_of_their_cells_are_no_collapse(seed):
    """The true effects are much more alike than the observed ones; only the noise of 45 cells makes these differ."""
    screens = Screens(shared=0.1, own=0.02, seed=seed)
    assert screens.messages(screens.effects) == []
    assert screens.messages(np.tile(screens.common, (20, 1))) == []  # all that can be known
    learned = screens.observed_means.mean(axis=0) - screens.control_mean  # shares the controls' noise with the observed
    assert screens.messages(0.9 * learned + 0.1 * (screens.observed_means - screens.control_mean)) == []


def test_small_effects_are_not_told_apart_by_their_direction():
    effects = Screens(own=0.3).effects.copy()
    effects[3:] = 0.02 * effects[:3].mean(axis=0)  # nothing is known of the others
    assert Screens(own=0.0).messages(effects) == []


def test_a_few_perturbations_may_be_alike():
    screens = Screens(own=0.3, family=3)
    assert screens.messages(screens.effects[:2]) == []  # of which the first three are one
    assert len(screens.messages(np.tile(screens.effects[0], (20, 1)))) == 1


@pytest.mark.parametrize("strength", ["one", "own"])
def test_one_change_for_all_rings(strength):
    screens = Screens(shared=0.15, own=0.25)
    mean = screens.effects.mean(axis=0)
    lengths = np.linalg.norm(screens.effects, axis=1) / np.linalg.norm(mean)
    (message,) = screens.messages(mean * (np.ones(20) if strength == "one" else lengths)[:, None] * 2)
    assert "mode collapse in 'X'" in message
    assert "Too few training steps" in message
    (message,) = screens.messages(2 * np.tile(mean, (20, 1)), output="prior")
    assert "training steps" not in message  # there were none
    assert screens.messages(screens.effects) == []


def test_cosines_of_an_older_model_are_enough():
    screens = Screens(own=0.3)
    alarm, controls = screens.alarm(), screens.screen.index.controls("X")
    alarm.observed = {"X": {"cosine": alarm.observed["X"]["cosine"]}}
    start = screens.store.dense(screens.store.fetch(controls), CPU).numpy()
    for name in screens.names:
        alarm.see(start + screens.effects[0], [Condition("X", name)], [controls])
    with pytest.warns(EvaluationWarning, match="mode collapse in 'X'"):
        alarm.ring()


def test_several_contexts_ring_once():
    screens = Screens(own=0.3)
    alarm, controls = screens.alarm(), screens.screen.index.controls("X")
    start = screens.store.dense(screens.store.fetch(controls), CPU).numpy()
    for context in "XYZ":
        for name in screens.names:
            alarm.see(start + 2 * screens.effects[0], [Condition(context, name)], [controls])
    with pytest.warns(EvaluationWarning, match="mode collapse") as caught:
        alarm.ring()
    assert len(caught) == 1
    assert "in 'X' (and 2 more contexts)" in str(caught[0].message)


@pytest.mark.parametrize("collapsed", [(0, 1, 2), (2,)], ids=["all members", "the last one"])
def test_an_ensemble_says_it_once_whichever_member_it_is(make_model, train, collapsed):
    ensemble = TahoeEnsemble([train(make_model(seed=seed), seed=seed) for seed in range(3)])
    for i, model in enumerate(ensemble.models):
        model._adopt(observed_cosine_={"context_1": -1.0 if i in collapsed else 1.0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ensemble.predict(n_cells=8, progress=False)
    assert sum("mode collapse" in str(w.message) for w in caught) == 1
