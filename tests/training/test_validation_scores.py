"""Scores of a validation are those of the evaluation, on the cells that validate."""

from __future__ import annotations

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest

from scvi_tahoe import HeldOutPerturbations, evaluate
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.training._reports import VALIDATION_SCORES, computed_scores, top_gene_overlap


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


def test_the_overlap_counts_the_genes_that_change_most_whatever_their_sign():
    observed = np.zeros((2, 30))
    observed[0, [3, 7, 11]], observed[1, [1, 2, 3]] = [5, -4, 3], [1, 2, -9]
    predicted = np.zeros((2, 30))
    predicted[0, [3, 7, 20]], predicted[1, [1, 2, 3]] = [-1, 1, 1], [3, -3, 3]
    np.testing.assert_allclose(top_gene_overlap(predicted, observed), [2 / 3, 1.0])


def test_losses_alone_are_computed_where_no_score_is_asked_for(make_model, train):
    assert not set(VALIDATION_SCORES) & set(train(make_model()).history)


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


def test_scores_of_embeddings_are_refused(make_model, train):
    model = make_model(setup={"cell_embedding_key": "X_embedding"}, representation="embedding")
    with pytest.raises(ValueError, match="monitor='validation_pds' compares changes of expression, and represent"):
        train(model, monitor="validation_pds")
