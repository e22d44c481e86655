"""scvi-tools' hyper-parameter search runs on this model."""

from __future__ import annotations

import pytest

from scvi_tahoe import TahoeST

pytestmark = pytest.mark.slow


def test_two_trials_of_autotune_report_the_validation_they_are_asked_for(screen, register, tmp_path):
    import ray
    from ray import tune
    from scvi.autotune import run_autotune

    size = {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}
    training = {"max_steps": 6, "validate_every": 3, "batch_size": 2, "monitor": "validation_pearson_delta"}
    try:
        experiment = run_autotune(
            TahoeST,
            register(screen),
            metrics="validation_pearson_delta",
            mode="max",
            search_space={
                "model_params": {"size": size, "set_size": 8},
                "train_params": {**training, "lr": tune.grid_search([1e-4, 1e-2])},
            },
            num_samples=1,
            searcher="random",
            scheduler="fifo",
            seed=1,
            resources={"cpu": 1},
            logging_dir=str(tmp_path),
        )
    finally:
        ray.shutdown()
    trials = experiment.result_grid
    assert not trials.errors
    table = trials.get_dataframe().set_index("config/train_params/lr")
    assert set(table.index) == {1e-4, 1e-2}
    assert table["training_iteration"].tolist() == [2, 2]
    scores = table["validation_pearson_delta"]
    assert scores[1e-4] != scores[1e-2]
    best = trials.get_best_result("validation_pearson_delta", mode="max")
    assert best.config["train_params"]["lr"] == scores.idxmax()
