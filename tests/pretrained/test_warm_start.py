"""Rows and columns follow their labels, what is new is named, and nothing that changes meaning happens unasked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.nn import GeneDecoderConfig, NetworkConfig, SetTransformer
from scvi_tahoe.pretrained import (
    DECISIONS,
    AxisLabels,
    PretrainedModel,
    Provenance,
    match_labels,
    plan_warm_start,
    read_arc_folder,
)


@pytest.fixture
def load(arc, tmp_path):
    def make(**options):
        return read_arc_folder(arc(**options).write())

    return make


FIRST = "perturbation_encoder.layers.0.weight"


def start(source, *accept, config=None, **labels):
    """Plan with some labels changed, the configuration following their numbers."""
    new = replace(source.labels, **labels)
    sizes = {"n_perturbation": new.perturbations.width}
    if new.genes is not None and source.genes is not None:
        sizes |= {"n_input": len(new.genes), "n_output": len(new.genes)}
    if source.config.n_batches and new.batches:
        sizes["n_batches"] = len(new.batches)
    return plan_warm_start(source, replace(source.config, **(sizes | (config or {}))), new, accept=accept)


def run(source, state, config, *inputs):
    network = SetTransformer(config).eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        return network(*inputs).prediction_SNG


def one_hot(n, *rows):
    return torch.eye(n)[list(rows)]


def test_the_same_labels_load_every_tensor_without_a_copy(load):
    source = load(batch_encoder=True, confidence=True)
    state, report = start(source)
    assert report.loaded == set(state)
    assert not report.must_train
    assert all(state[name].data_ptr() == source.state_dict[name].data_ptr() for name in state)


@pytest.mark.parametrize("space", [{}, {"space": "all", "embed_key": None}])
def test_other_order_of_every_label_gives_the_same_predictions(load, space):
    source = load(batch_encoder=True, **space)
    genes, perturbations = np.random.default_rng(0).permutation(24), np.array([3, 0, 4, 1, 2])
    names = source.perturbations.names
    state, report = start(
        source,
        genes=tuple(np.array(source.genes)[genes]),
        perturbations=EmbeddingTable.one_hot_of(tuple(names[i] for i in perturbations)),
        batches=("c", "a", "b"),
    )
    assert report.loaded == set(state)
    control = torch.rand(2, 6, 24, generator=torch.Generator().manual_seed(0))
    before = run(source, source.state_dict, source.config, control, one_hot(5, 3, 1), torch.tensor([[0], [2]]))
    after = run(source, state, source.config, control[..., genes], one_hot(5, 0, 3), torch.tensor([[1], [0]]))
    torch.testing.assert_close(after, before[..., genes], atol=1e-5, rtol=1e-5)


def test_new_genes_leave_the_predictions_of_the_old_ones_unchanged(load):
    source = load(space="all", embed_key=None)
    genes = ("N1", *source.genes[12:], *source.genes[:12], *(f"N{i}" for i in range(2, 9)))
    state, report = start(source, "new_genes", genes=genes)
    config = replace(source.config, n_input=32, n_output=32)
    control = torch.rand(2, 6, 32, generator=torch.Generator().manual_seed(0))
    places = [genes.index(gene) for gene in source.genes]
    before = run(source, source.state_dict, source.config, control[..., places], one_hot(5, 3, 1))
    after = run(source, state, config, control, one_hot(5, 3, 1))
    torch.testing.assert_close(after[..., places], before, atol=1e-5, rtol=1e-5)
    match = report.matches[0]
    assert match.missing == ("N1", *(f"N{i}" for i in range(2, 9)))
    assert {"head.down.weight", "head.up.weight", "control_encoder.layers.0.weight"} <= report.must_train
    assert report.decisions == ("new_genes",)


def test_a_few_missing_genes_are_left_out_and_named(load):
    source = load()
    state, report = start(source, genes=source.genes[1:-1])
    assert report.matches[0].surplus == (source.genes[0], source.genes[-1])
    first = "control_encoder.layers.0.weight"
    assert torch.equal(state[first], source.state_dict[first][:, 1:-1])
    assert first in report.loaded


def test_new_perturbations_start_at_the_mean_of_the_known(load):
    source = load()
    names = (*source.perturbations.names, "NEW1", "NEW2")
    state, report = start(source, perturbations=EmbeddingTable.one_hot_of(names))
    assert torch.equal(state[FIRST][:, :5], source.state_dict[FIRST])
    torch.testing.assert_close(state[FIRST][:, 6], source.state_dict[FIRST].mean(1))
    assert report.must_train == {FIRST}
    assert report.matches[1].missing == ("NEW1", "NEW2")


def test_the_control_label_may_have_another_name_unless_it_is_known(load):
    source = load()
    state, report = start(
        source, perturbations=EmbeddingTable.one_hot_of(("P0", "non-targeting")), control="non-targeting"
    )
    assert torch.equal(state[FIRST], source.state_dict[FIRST][:, [1, 0]])
    assert any("takes the place of 'control'" in note for note in report.notes)
    source = replace(source, labels=replace(source.labels, control="not there"))
    state, report = start(source, perturbations=EmbeddingTable.one_hot_of(("P0", "control")), control="control")
    assert torch.equal(state[FIRST], source.state_dict[FIRST][:, [1, 0]])
    assert report.matches[1].missing == ()
    assert not any("takes the place" in note for note in report.notes)


def test_shared_labels_predict_the_same_whatever_else_changes(load):
    source = load(batch_encoder=True)
    rng = np.random.default_rng(1)
    kept = rng.permutation(24)[:22]  # two genes are gone, the others in another order, two are new
    genes = ("N0", *(source.genes[i] for i in kept[:11]), "N1", *(source.genes[i] for i in kept[11:]))
    names = ("new", "P2", "control", "P0")  # P1 and P3 are gone
    state, report = start(source, genes=genes, perturbations=EmbeddingTable.one_hot_of(names), batches=("x", "c", "a"))
    config = replace(source.config, n_input=24, n_output=24, n_perturbation=4)
    control = torch.rand(2, 6, 24, generator=torch.Generator().manual_seed(0))
    gone = np.setdiff1d(np.arange(24), kept)
    control[..., gone] = 0.0  # what the data do not measure, the weights have to see as not expressed
    places = np.array([genes.index(source.genes[i]) for i in kept])
    moved = torch.rand(2, 6, 24)
    moved[..., places] = control[..., kept]
    old = [source.perturbations.names.index(name) for name in ("P2", "control")]
    before = run(source, source.state_dict, source.config, control, one_hot(5, *old), torch.tensor([[2], [0]]))
    after = run(source, state, config, moved, one_hot(4, 1, 2), torch.tensor([[1], [2]]))
    torch.testing.assert_close(after[..., places], before[..., kept], atol=1e-5, rtol=1e-5)
    label_table = report.label_table.set_index("axis")
    assert label_table.loc["genes", ["matched", "missing", "surplus"]].tolist() == [22, 2, 2]
    assert label_table.loc["perturbations", "missing_names"] == ["new"]
    assert label_table.loc["perturbations", "surplus_names"] == ["P1", "P3"]
    assert label_table.loc["batches", ["matched", "missing", "surplus"]].tolist() == [2, 1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_the_table_counts_what_was_really_moved(load, seed):
    source, rng = load(batch_encoder=True, confidence=True), np.random.default_rng(seed)

    def some(names, n_kept, new, n_new):
        return tuple(rng.permutation([*rng.permutation(names)[:n_kept], *(f"{new}{i}" for i in range(n_new))]).tolist())

    perturbations = some(source.perturbations.names[1:], int(rng.integers(1, 5)), "Q", int(rng.integers(0, 4)))
    state, report = start(
        source,
        "new_genes",
        "drop_genes",
        genes=some(source.genes, int(rng.integers(8, 25)), "N", int(rng.integers(0, 9))),
        perturbations=EmbeddingTable.one_hot_of(("control", *perturbations)),
        batches=some(source.batches, int(rng.integers(1, 4)), "z", int(rng.integers(0, 3))),
    )
    for record in report.records:
        if record.tensor not in state:
            continue
        theirs, ours = source.state_dict[record.tensor], state[record.tensor]
        rows, columns = _found(ours, theirs, 0), _found(ours.T, theirs.T, 0) if ours.ndim == 2 else 0
        if record.status == "loaded":
            assert ours.shape[0] == rows or ours.shape[-1] == columns, record
        elif "columns" in record.detail:
            assert f"{columns} of {ours.shape[1]} columns by label" in record.detail
        else:
            assert f"{rows} of {ours.shape[0]} rows by label" in record.detail


def _found(ours, theirs, dim):
    """Slices of ours that are slices of theirs, bit by bit."""
    known = {slice_.numpy().tobytes() for slice_ in theirs.unbind(dim)}
    return sum(slice_.contiguous().numpy().tobytes() in known for slice_ in ours.unbind(dim))


def test_from_one_hot_to_a_table_the_other_layers_stay(load):
    source = load()
    table = EmbeddingTable(("P0", "control"), np.ones((2, 7), np.float32))
    with pytest.raises(ValueError, match="one-hot of width 5 in the weights and features of width 7"):
        start(source, perturbations=table)
    with pytest.raises(ValueError, match="new_perturbation_encoder"):  # though the width is the same
        start(source, perturbations=EmbeddingTable(("a", "b"), np.ones((2, 5), np.float32)))
    state, report = start(source, "new_perturbation_encoder", perturbations=table)
    new = {FIRST, "perturbation_encoder.layers.0.bias"}
    assert {record.tensor for record in report.records if record.status == "new"} == report.must_train == new
    assert all(torch.equal(state[name], source.state_dict[name]) for name in source.state_dict if name not in new)


def test_new_batches_start_at_the_mean_row_and_none_keep_it(load):
    source = load(batch_encoder=True)
    state, report = start(source, batches=("x", "b"))
    rows = source.state_dict["batch_encoder.weight"]
    torch.testing.assert_close(state["batch_encoder.weight"], torch.stack([rows.mean(0), rows[1]]))
    assert report.must_train == {"batch_encoder.weight"}
    state, report = start(source, "drop_batch_encoder", config={"n_batches": 0}, batches=None)
    assert "batch_encoder.weight" in list(report.table.loc[report.table.status == "refused", "tensor"])
    last = "perturbation_encoder.layers.1.bias"
    torch.testing.assert_close(state[last], source.state_dict[last] + rows.mean(0))


def test_features_are_compared_where_labels_are_shared(golden):
    source = read_arc_folder(golden("expr_all_feat").folder.write())
    table = source.perturbations
    same = EmbeddingTable(("GENE1", "other"), np.stack([table.matrix[1], np.ones(32, np.float32)]))
    assert start(source, perturbations=same).report.loaded
    different = EmbeddingTable(("GENE1",), table.matrix[1:2] * 2)
    with pytest.raises(ValueError, match="new_perturbation_encoder.*GENE1"):
        start(source, perturbations=different)
    strangers = EmbeddingTable(("x", "y"), np.ones((2, 32), np.float32))
    with pytest.raises(ValueError, match="same_features"):
        start(source, perturbations=strangers)
    assert not start(source, "same_features", perturbations=strangers).report.must_train


def test_a_gene_decoder_follows_its_gene_names(load):
    source = load(embed_key="X_state", space="all", decoder="plain")
    decoder = replace(source.config.gene_decoder, n_genes=31)
    genes = ("new", *reversed(source.labels.decoder_genes))
    state, report = start(source, config={"gene_decoder": decoder}, decoder_genes=genes)
    torch.testing.assert_close(state["gene_decoder.out.bias"][1:], source.state_dict["gene_decoder.out.bias"].flip(0))
    assert report.must_train == {"gene_decoder.out.weight", "gene_decoder.out.bias"}


DECODED = {"embed_key": "X_state", "space": "all", "decoder": "plain"}
DECIDED = {
    "many new genes": ({}, {"genes": [*(f"G{i}" for i in range(24)), *"abcdef"]}, {}, ("new_genes",)),
    "many genes gone": ({}, {"genes": [f"G{i}" for i in range(12)]}, {}, ("drop_genes",)),
    "set size": ({}, {"set_size": 64}, {}, ("other_set_size",)),
    "attention": ({}, {}, {"attention": "causal"}, ("other_attention",)),
    "head": ({}, {}, {"head": "absolute"}, ("other_head",)),
    "rectify": ({}, {}, {"rectify": False}, ("other_head",)),
    "extra input": ({}, {}, {"n_input": 30}, ("extra_input",)),
    "embedding instead of genes": ({}, {"genes": None, "embedding": "X_state"}, {}, ("new_input", "new_output")),
    "wider embedding": (
        {"embed_key": "X_state"}, {}, {"n_input": 30, "n_output": 30}, ("new_input", "new_output"),
    ),
    "other embedding": ({"embed_key": "X_state"}, {"embedding": "X_uce"}, {}, ("other_embedding",)),
    "batch encoder": ({}, {"batches": ("a",)}, {"n_batches": 1}, ("new_batch_encoder",)),
    "no batch encoder": ({"batch_encoder": True}, {"batches": None}, {"n_batches": 0}, ("drop_batch_encoder",)),
    "confidence token": ({}, {}, {"confidence_token": True}, ("new_tokens",)),
    "no confidence token": ({"confidence": True}, {}, {"confidence_token": False}, ("drop_tokens",)),
    "gene decoder": (
        {"embed_key": "X_state"}, {},
        {"gene_decoder": GeneDecoderConfig(n_genes=9, hidden=(8,))}, ("new_gene_decoder",),
    ),
    "no gene decoder": (
        DECODED, {}, {"gene_decoder": None}, ("drop_gene_decoder",),
    ),
    "other gene decoder": (
        DECODED, {},
        {"gene_decoder": GeneDecoderConfig(n_genes=30, hidden=(8,))}, ("new_gene_decoder",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "labels", "config", "decisions"), DECIDED.values(), ids=list(DECIDED))
def test_what_changes_the_meaning_of_weights_needs_a_decision(load, options, labels, config, decisions):
    source = load(**options)
    with pytest.raises(ValueError, match="|".join(repr(name) for name in decisions)) as caught:
        start(source, config=config, **labels)
    assert all(repr(name) in str(caught.value) for name in decisions)
    state, report = start(source, *decisions, config=config, **labels)
    assert set(report.decisions) == set(decisions)
    for name in report.loaded:
        assert name in source.state_dict
    assert report.loaded.isdisjoint(report.must_train)
    assert report.loaded | report.must_train == set(state)


def test_every_decision_that_is_missing_is_listed_at_once(load):
    with pytest.raises(ValueError, match="other_attention") as caught:
        start(load(), config={"attention": "causal", "head": "absolute"}, set_size=3)
    assert "other_head" in str(caught.value)
    assert "other_set_size" in str(caught.value)
    # as it is to be passed, with what is accepted already
    with pytest.raises(ValueError, match=r"accept=\['other_head', 'other_attention'\], or other data"):
        start(load(), "other_head", config={"attention": "causal", "head": "absolute"})


def test_changing_the_output_never_leaves_a_frozen_random_layer(load):
    source = load()
    genes = tuple(f"H{i}" for i in range(40))
    report = start(source, "new_input", "new_output", genes=genes).report
    assert {"head.project.layers.2.weight", "head.project.layers.2.bias"} <= report.must_train
    assert {name for name in source.state_dict if name.startswith("backbone.")} <= report.loaded


def test_a_delta_head_starts_at_zero_on_pretrained_weights(load):
    source = load()
    state, _ = start(source, "other_head", config={"head": "delta"})
    control = torch.rand(1, 4, 24)
    config = replace(source.config, head="delta")
    assert torch.equal(run(source, state, config, control, one_hot(5, 2)), control)


@pytest.fixture
def based():
    """A network that also reads the cells its change is added to."""
    config = NetworkConfig(
        n_input=24, n_output=24, n_perturbation=3, hidden=8, n_layers=1, intermediate=8, n_heads=2, keep_zeros=True,
        base_encoder=True,
    )  # fmt: skip
    labels = AxisLabels(
        genes=tuple(f"G{i}" for i in range(24)),
        perturbations=EmbeddingTable.one_hot_of(("control", "x", "y")),
        control="control",
        set_size=4,
    )
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in SetTransformer(config).state_dict().items()
    }
    return PretrainedModel(config=config, state_dict=state, labels=labels, provenance=Provenance(source="based"))


def test_the_encoder_of_the_base_follows_the_gene_names(based):
    order = np.random.default_rng(0).permutation(24)
    genes = tuple(based.genes[i] for i in order)
    state, report = start(based, genes=(*genes, "new"))
    assert {r.tensor for r in report.records if r.status == "resized"} >= {"base_encoder.layers.0.weight"}
    control, base, perturbation = torch.rand(1, 4, 24), torch.rand(1, 4, 24), one_hot(3, 1)
    expected = run(based, based.state_dict, based.config, control, perturbation, None, base)
    config = replace(based.config, n_input=25, n_output=25)
    moved = [torch.cat([cells[..., order], torch.rand(1, 4, 1)], -1) for cells in (control, base)]
    found = run(based, state, config, moved[0], perturbation, None, moved[1])
    torch.testing.assert_close(found[..., :24], expected[..., order], atol=1e-4, rtol=1e-4)


def test_the_encoder_of_the_base_is_new_where_the_cells_are(based):
    config = {"n_input": 6, "n_output": 6}
    needed = ("new_input", "new_output")
    state, report = start(based, *needed, config=config, genes=tuple(f"H{i}" for i in range(6)))
    assert state["base_encoder.layers.0.weight"].shape == (8, 6)
    assert {"base_encoder.layers.0.weight", "base_encoder.layers.0.bias"} <= report.must_train


@pytest.mark.parametrize(
    ("name", "used"),
    [("base_encoder", ".*base_encoder"), ("keep_zeros", ".*keep_zeros"), ("sees_perturbation", "sees_pert.*=True and")],
)
def test_what_a_network_does_with_its_base_changes_by_decision_only(based, name, used):
    with pytest.raises(ValueError, match=f"'other_head': the weights are used with {used}"):
        start(based, config={name: False})
    state, report = start(based, "other_head", config={name: False})
    assert report.decisions == ("other_head",)
    assert any(n.startswith("base_encoder.") for n in state) == (name != "base_encoder")


def test_what_cannot_be_matched_is_refused_whatever_is_accepted(load):
    source = load()
    with pytest.raises(ValueError, match="n_layers is 2 in the weights and 3 here"):
        start(source, *DECISIONS, config={"n_layers": 3})
    with pytest.raises(ValueError, match="ENSG1.*G0.*convention"):
        start(source, *({*DECISIONS} - {"new_input", "new_output"}), genes=tuple(f"ENSG{i}" for i in range(1, 25)))
    with pytest.raises(ValueError, match=r"Unknown decisions \['yes'\]"):
        start(source, "yes")
    with pytest.raises(ValueError, match="occurs twice"):
        match_labels("genes", ["a", "a"], ["a"])
    nameless = replace(source, labels=replace(source.labels, genes=None))
    with pytest.raises(ValueError, match="does not name the 24 genes"):
        plan_warm_start(nameless, source.config, source.labels)
    with pytest.raises(ValueError, match="its genes have no names"):
        plan_warm_start(source, source.config, nameless.labels)


def test_what_is_new_depends_on_the_seed_alone(load):
    source = load()
    labels = replace(source.labels, set_size=8)
    config = replace(source.config, confidence_token=True)
    first, second, other = (
        plan_warm_start(source, config, labels, accept=["new_tokens"], seed=seed).state_dict for seed in (1, 1, 2)
    )
    assert torch.equal(first["confidence.token"], second["confidence.token"])
    assert not torch.equal(first["confidence.token"], other["confidence.token"])


def test_the_report_is_a_table_and_a_text(load):
    report = start(load(), perturbations=EmbeddingTable.one_hot_of(("control", "NEW"))).report
    assert list(report.table.columns) == ["tensor", "status", "source_shape", "target_shape", "detail"]
    assert report.label_table.set_index("axis").loc["perturbations", "missing_names"] == ["NEW"]
    assert "1 resized" in report.text()
    assert "1 new (NEW), 4 left out (P0, P1, P2, P3)" in report.text()
