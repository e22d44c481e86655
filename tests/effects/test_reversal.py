"""Conditions are ranked by how far they undo a signature."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.effects import rank_reversals


@pytest.fixture
def screen(table_of):
    rng = np.random.default_rng(0)
    changes, weights = rng.normal(0, 1, (40, 200)), rng.normal(0, 1, 20)
    changes[3, :20] -= 2 * weights
    changes[5, :20] += 2 * weights
    effects = table_of(changes, sd=0.3, perturbation=[f"P{i}" for i in range(40)])
    return effects, dict(zip(effects.var_names[:20], weights, strict=True))


def test_the_condition_that_undoes_the_signature_is_first_and_the_one_that_repeats_it_last(screen):
    effects, signature = screen
    ranked = rank_reversals(effects, signature, n_permutations=400)
    assert (ranked["perturbation"].iloc[0], ranked["perturbation"].iloc[-1]) == ("P3", "P5")
    assert ranked["p_value"].iloc[0] == pytest.approx(1 / 401)
    assert ranked["p_value"].iloc[5:35].mean() == pytest.approx(0.5, abs=0.15)
    assert ranked.attrs["n_genes"] == 20


def test_the_sd_of_the_score_is_that_of_redrawn_changes(screen):
    effects, signature = screen[0][:5].copy(), screen[1]
    ranked = rank_reversals(effects, signature, n_permutations=1)
    rng, drawn = np.random.default_rng(1), []
    for _ in range(150):
        again = effects.copy()
        again.X = effects.X + rng.normal(0, 0.3, effects.shape)
        drawn.append(rank_reversals(again, signature, n_permutations=1)["score"].loc[ranked.index])
    assert np.std(drawn, axis=0) == pytest.approx(ranked["sd"].to_numpy(), rel=0.3)


def test_a_table_of_scanpy_and_a_list_of_signs_are_signatures(screen):
    effects, signature = screen
    table = pd.DataFrame({"names": list(signature), "logfoldchanges": list(signature.values())})
    kwargs = {"n_permutations": 10}
    pd.testing.assert_frame_equal(
        rank_reversals(effects, table, **kwargs), rank_reversals(effects, signature, **kwargs)
    )
    one_sided = dict.fromkeys(list(signature), 1.0)
    assert rank_reversals(effects, one_sided, n_permutations=100)["p_value"].mean() == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        pytest.param({"MDM2": 1.0}, "at least 5", id="no gene in common"),
        pytest.param({f"gene_{i}": 0.0 for i in range(9)}, "at least 5", id="zeros"),
        pytest.param(pd.DataFrame({"gene": ["gene_1"]}), "names", id="another table"),
        pytest.param(pd.Series(1.0, index=["gene_1"] * 6), "more than once", id="duplicates"),
    ],
)
def test_signatures_that_say_nothing_are_refused(screen, signature, says):
    with pytest.raises(ValueError, match=says):
        rank_reversals(screen[0], signature)
