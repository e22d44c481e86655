"""What a run reports: its history, scores of validations, and what it takes of the memory of a device."""

from __future__ import annotations

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from scvi_tahoe import HeldOutPerturbations, evaluate
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.nn import SIZES, NetworkConfig
from scvi_tahoe.training import MemoryPlan, MetricsHistory, explained_out_of_memory, plan_memory
from scvi_tahoe.training._reports import VALIDATION_SCORES, StepProgress, computed_scores, top_gene_overlap

METRICS = {"train_loss", "validation_loss", "train_energy", "validation_energy", "sets_per_second", "mfu", "lr_new"}


@pytest.mark.parametrize("kind", ["csv", "none", "logger", "list"])
def test_the_history_is_filled_with_any_logger(kind, make_model, train, tmp_path):
    own = CSVLogger(tmp_path / "own")
    chosen = {"csv": "csv", "none": None, "logger": own, "list": [own]}[kind]
    model = train(make_model(), logger=chosen, save_dir=tmp_path / "run")
    assert set(model.history) >= METRICS
    assert model.history["train_loss"].index.tolist() == [3, 7]
    assert list(model.history["train_loss"].columns) == ["train_loss"]
    assert (tmp_path / "run" / "metrics.csv").exists() == (kind != "none")
    if kind in ("logger", "list"):
        table = pd.read_csv(next((tmp_path / "own").rglob("metrics.csv")))
        losses = table["validation_loss"].dropna().tolist()
        assert losses == pytest.approx(model.history["validation_loss"]["validation_loss"].tolist())


def test_steps_of_a_second_training_count_on_also_after_saving(make_model, train, tmp_path):
    model = train(make_model(), logger=CSVLogger(tmp_path / "first"))
    first = model.history
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", model.adata)
    for name, frame in first.items():
        pd.testing.assert_frame_equal(loaded.history[name], frame)
    for again in (model, loaded):
        train(again, recipe="full", max_steps=4, validate_every=2, logger=CSVLogger(tmp_path / "second"))
        assert again.history["validation_loss"].index.tolist() == [3, 7, 9, 11]
        pd.testing.assert_frame_equal(again.history["validation_loss"].iloc[:2], first["validation_loss"])


def test_a_file_is_written_whole_and_read_up_to_a_step(tmp_path):
    log = MetricsHistory(tmp_path / "metrics.csv")
    for step in range(4):
        log.log_metrics({"loss": step / 2}, step=step)
    log.log_metrics({"late": 1.0}, step=1)
    log.save()
    assert [f.name for f in tmp_path.iterdir()] == ["metrics.csv"]
    resumed = MetricsHistory(tmp_path / "metrics.csv", resume_step=2)
    assert resumed.history["loss"]["loss"].to_dict() == {0: 0.0, 1: 0.5}
    assert resumed.history["late"]["late"].to_dict() == {1: 1.0}
    anew = MetricsHistory(tmp_path / "metrics.csv")
    assert anew.history == {}


class Cells(pl.Callback):
    """All cells of the last validation."""

    def on_validation_epoch_start(self, *args):
        self.parts = {"predicted": [], "observed": [], "control": []}
        self.conditions = []

    def on_validation_batch_end(self, trainer, plan, outputs, batch, *args):
        cells = (outputs["prediction_SNG"], batch[TENSORS.OBSERVED], batch[TENSORS.CONTROL])
        for name, value in zip(self.parts, cells, strict=True):
            self.parts[name].append(value.float().flatten(0, 1).numpy())
        self.conditions += np.repeat(batch[TENSORS.CONDITION].numpy(), cells[0].shape[1]).tolist()

    def adata(self, part, conditions, genes, *, control=False):
        labels = [conditions[c] for c in self.conditions]
        obs = pd.DataFrame({
            "perturbation": ["control" if control else c.perturbation for c in labels],
            "context": [c.context for c in labels],
        }, index=[f"{part}_{i}" for i in range(len(labels))])  # fmt: skip
        return ad.AnnData(np.concatenate(self.parts[part]), obs=obs, var=pd.DataFrame(index=genes))


def test_scores_are_those_of_the_evaluation_on_the_same_cells(make_model, train):
    """Two contexts, several perturbations, sets of different conditions in one minibatch."""
    cells, seen = Cells(), {}

    class Conditions(pl.Callback):
        def on_train_start(self, trainer, plan):
            seen["conditions"] = trainer.datamodule.split.index.conditions

    held_out = HeldOutPerturbations(validation=["perturbation_1", "perturbation_2", "perturbation_3"])
    model = train(
        make_model(), monitor="validation_pds", split=held_out, callbacks=[cells, Conditions()], lr=0.02, max_steps=16,
        validate_every=16,
    )  # fmt: skip
    parts = [cells.adata(p, seen["conditions"], model.genes, control=p == "control") for p in cells.parts]
    reference = ad.concat(parts[1:])
    result = evaluate(
        parts[0], reference, perturbation_key="perturbation", control="control", context_key="context", preset="quick",
        baseline=None, representation_check="off",
    )  # fmt: skip
    logged = {name: model.history[name].iloc[-1, 0] for name in VALIDATION_SCORES}
    per_condition = result.per_perturbation
    assert len(per_condition) == 6
    assert logged["validation_pds"] == pytest.approx(per_condition["discrimination_score_l1"].mean(), abs=1e-6)
    assert logged["validation_pearson_delta"] == pytest.approx(per_condition["pearson_delta"].mean(), abs=1e-5)
    overlap = top_gene_overlap(result.effects.predicted, result.effects.observed).mean()
    assert logged["validation_overlap"] == pytest.approx(overlap)


def test_the_overlap_counts_the_genes_that_change_most():
    observed = np.zeros((2, 30))
    observed[0, [3, 7, 11]], observed[1, [1, 2, 3]] = [5, -4, 3], [1, 2, -9]
    predicted = np.zeros((2, 30))
    predicted[0, [3, 7, 20]], predicted[1, [1, 2, 3]] = [-1, 1, 1], [3, -3, 3]
    np.testing.assert_allclose(top_gene_overlap(predicted, observed), [2 / 3, 1.0])


def test_scores_are_computed_where_they_are_asked_for_and_mean_something(make_model, train):
    assert not set(VALIDATION_SCORES) & set(train(make_model()).history)
    model = make_model(setup={"cell_embedding_key": "X_embedding"}, representation="embedding")
    with pytest.raises(ValueError, match="monitor='validation_pds' compares changes of expression, and represent"):
        train(model, monitor="validation_pds")


EMBEDDED = {"setup": {"cell_embedding_key": "X_embedding"}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "network": {"confidence_token": True},
            "objective": {"shift_weight": 0.1, "terms": {"mmd": 1, "contrastive": 1}},
        },
        {**EMBEDDED, "representation": "embedding"},
        {**EMBEDDED, "representation": "embedding", "objective": {"decoder_weight": 0.0}},
        {**EMBEDDED, "representation": "expression+embedding"},
        {"network": {"batch_token": True, "n_batch_classes": 2}},
    ],
    ids=["plain", "more terms", "decoder", "no decoder", "auxiliary embedding", "batch token"],
)
def test_what_can_be_monitored_is_what_a_training_computes(options, make_model, train):
    model = make_model(**options)
    expects = computed_scores(model.module, model.representation)
    score = {"monitor": "validation_pds"} if "validation_pds" in expects else {}
    history = train(model, **score).history
    assert set(expects) == {name for name in history if name.startswith("validation_")}


CPU = torch.device("cpu")
GENES = 18_080
CONFIG = NetworkConfig(n_input=GENES, n_output=GENES, n_perturbation=5_120, head="down_up", **SIZES["tahoe"])


def plan(**changes):
    usual = {"n_parameters": 10**8, "n_trainable": 10**8, "cells_per_step": 6_144, "in_16_bits": True, "expression": 10}
    return plan_memory(CONFIG, **{**usual, **changes}, device=CPU)


def test_memory_grows_with_what_trains_with_cells_and_with_precision():
    frozen = plan(n_trainable=0)
    assert frozen.gradients == frozen.optimizer == 0
    assert frozen.weights == plan().weights
    assert plan().optimizer == 2 * plan().gradients == 8 * 10**8
    assert plan(cells_per_step=2 * 6_144).activations == 2 * plan().activations
    assert plan(in_16_bits=False).activations > plan().activations


def test_the_total_is_the_sum_and_says_whether_it_fits():
    sizes = {"weights": 2**30, "gradients": 2**30, "optimizer": 2**31, "activations": 2**32, "expression": 2**20}
    memory = MemoryPlan(**sizes, available=2**34)
    assert memory.total == sum(sizes.values())
    assert memory.fits
    assert MemoryPlan(**sizes, available=memory.total).fits
    assert not MemoryPlan(**sizes, available=memory.total - 1).fits
    assert MemoryPlan(**sizes).fits  # nothing is known
    assert str(memory) == (
        "about 8.0 GiB of 16.0 GiB free (weights 1.0 GiB, gradients 1.0 GiB, optimizer 2.0 GiB, activations 4.0 GiB, "
        "expression 1.0 MiB)"
    )


def test_a_model_says_what_its_training_takes(make_model):
    model = make_model()
    n = sum(p.numel() for p in model.module.parameters())
    memory = model.memory_plan(batch_size=4)
    assert memory.weights == 4 * n
    assert memory.activations == 2 * model.memory_plan(batch_size=2).activations
    assert memory.expression == 4 * model.adata.n_obs * model.adata.n_vars
    assert model.memory_plan(store="host").expression == 0


@pytest.mark.parametrize(("batch_size", "advice"), [(12, r"lower batch_size \(now 12\), e.g. batch_size=6"),
                                                    (1, r"fewer cells a set \(set_size is 64\)")])  # fmt: skip
def test_running_out_of_memory_says_what_to_lower(batch_size, advice):
    with (
        pytest.raises(MemoryError, match=rf"training ran out of the memory of the device: .*{advice}.*store='host'"),
        explained_out_of_memory(batch_size=batch_size, set_size=64, doing="training"),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
    with pytest.raises(RuntimeError, match="shape"), explained_out_of_memory(batch_size=1, set_size=1, doing="x"):
        raise RuntimeError("shape")  # other errors pass as they are


@pytest.mark.parametrize(("share", "shown"), [(0.004, "<1%"), (0.3, "30%")])
def test_the_speed_of_a_small_network_is_not_shown_as_nothing(share, shown):
    progress = StepProgress(max_steps=1, batch_size=1, accumulate=1, set_size=1, product_rate=1e9, show=False)
    progress.rates, progress._mfu = [12.0], share
    assert progress.summary().startswith(f"12.0 sets per second, at the end {shown} of the speed")
