"""Round trips through our own format and Arc's are bit-identical; damaged or foreign folders are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from scvi_tahoe import FractionSplit, TahoeST
from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.nn import NetworkConfig, SetTransformer
from scvi_tahoe.pretrained import (
    FORMATS,
    AxisLabels,
    PretrainedModel,
    Provenance,
    UnsafeFileError,
    arc_refusals,
    describe,
    export_model,
    inspect_folder,
    is_export,
    read_arc_folder,
    read_export,
    read_pretrained,
    write_arc_folder,
)


def verify_equal(a, b):
    assert a.config == b.config
    assert a.state_dict.keys() == b.state_dict.keys()
    assert all(torch.equal(a.state_dict[name], b.state_dict[name]) for name in a.state_dict)
    assert a.perturbations.names == b.perturbations.names
    assert (a.perturbations.matrix == b.perturbations.matrix).all()
    for name in ("genes", "decoder_genes", "control", "batches", "contexts", "embedding", "set_size"):
        assert getattr(a.labels, name) == getattr(b.labels, name)
    assert a.loss == b.loss


@pytest.fixture
def model(golden_folder):
    return read_arc_folder(golden_folder("expr_all_feat"))


def scratch(**changes):
    sizes = {"n_input": 9, "n_output": 9, "n_perturbation": 3, "hidden": 8, "n_layers": 1, "intermediate": 8}
    config = NetworkConfig(**{**sizes, "n_heads": 2, **changes})
    labels = AxisLabels(
        genes=tuple("abcdefghi"),
        perturbations=EmbeddingTable.one_hot_of(("control", "x", "y")),
        control="control",
        set_size=4,
        batches=("p", "q") if config.n_batches or config.n_batch_classes else None,
    )
    return PretrainedModel(
        config=config,
        state_dict=dict(SetTransformer(config).state_dict()),
        labels=labels,
        provenance=Provenance(source="scratch"),
    )


# Our own format.


def test_our_format_returns_what_was_exported(each_golden, tmp_path):
    model = read_arc_folder(each_golden.folder.write(tmp_path / "arc"))
    export_model(replace(model, extra={"note": [1, "two"]}), tmp_path / "ours")
    again = read_export(tmp_path / "ours")
    verify_equal(model, again)
    assert again.output_space == model.output_space
    assert again.extra == {"note": [1, "two"]}
    assert again.provenance == model.provenance


def test_weights_from_scratch_carry_no_licence_of_others(tmp_path):
    export_model(scratch(), tmp_path / "ours")
    assert not (tmp_path / "ours" / "LICENSE_NOTICE.md").exists()
    assert is_export(tmp_path / "ours")
    verify_equal(read_export(tmp_path / "ours"), read_pretrained(tmp_path / "ours"))
    with pytest.raises(ValueError, match="our own format"):
        read_pretrained(tmp_path / "ours", "best")


def test_an_unchanged_backbone_can_be_saved_by_reference(model, tmp_path):
    tuned = replace(model, state_dict={**model.state_dict, "head.up.bias": model.state_dict["head.up.bias"] + 1})
    export_model(tuned, tmp_path / "small", base=model)
    export_model(tuned, tmp_path / "whole")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    verify_equal(read_export(tmp_path / "small", base=model), tuned)
    with pytest.raises(ValueError, match="refers to the backbone of expr_all_feat"):
        read_export(tmp_path / "small")
    other = {**model.state_dict, "backbone.norm.weight": torch.zeros(48)}
    with pytest.raises(ValueError, match="base has another one"):
        read_export(tmp_path / "small", base=replace(model, state_dict=other))
    with pytest.raises(ValueError, match="it was trained"):
        export_model(replace(model, state_dict=other), tmp_path / "wrong", base=model)


def test_an_export_holds_no_pickle_and_says_what_it_is(model, tmp_path):
    folder = tmp_path / "ours"
    export_model(model, folder)
    weights = {"model.safetensors", "perturbations.safetensors"}
    assert {path.name for path in folder.iterdir()} == {"config.json", "README.md", "LICENSE_NOTICE.md", *weights}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # who may read the card may read the weights
    card = (folder / "README.md").read_text()
    assert "Non-Commercial" in card
    assert "full (bidirectional_attention is true)" in card
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_the_two_ways_to_keep_a_model_name_each_others_reader(make_model, tmp_path):
    model = make_model(prior="none")
    model.export(tmp_path / "exported")
    model.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"exported was written by export\(\).* read it with TahoeST.from_pretrained"):
        TahoeST.load(tmp_path / "exported")
    with pytest.raises(FileNotFoundError, match=r"saved was written by save\(\).* read it with TahoeST.load"):
        TahoeST.from_pretrained(tmp_path / "saved")


def test_an_existing_folder_is_replaced_only_on_request(model, tmp_path):
    export_model(model, tmp_path / "ours")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_model(model, tmp_path / "ours")
    export_model(model, tmp_path / "ours", overwrite=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="no model folder"):
        export_model(model, tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.tex").exists()
    with pytest.raises(TypeError):
        export_model(replace(model, extra={"x": object()}), tmp_path / "place" / "ours")
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "perturbations.safetensors"])
def test_an_altered_file_is_refused(model, tmp_path, name):
    export_model(model, tmp_path / "ours")
    path = tmp_path / "ours" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UnsafeFileError, match="does not match its hash"):
        read_export(tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "version 99"),
        ({"format": "other"}, "format 'other'"),
        ({"sha256": {}}, "no hashes"),
        ({"labels": {}}, "incomplete or damaged"),
        ({"network": {"n_input": 3}}, "incomplete or damaged"),
        ({"network": {**scratch().config.to_kwargs(), "hidden": 12, "head_dim": 6}}, "disagree about"),
        ({"sha256": {"model.safetensors": "", "../secret": ""}}, "hash|name inside"),
    ],
)
def test_an_altered_configuration_is_refused(model, tmp_path, change, message):
    export_model(model, tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnsafeFileError, match=message):
        read_export(tmp_path / "ours")


@pytest.mark.parametrize("kept", [4, 100])
def test_a_truncated_export_is_refused(tmp_path, kept):
    export_model(scratch(), tmp_path / "ours")
    path = tmp_path / "ours" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnsafeFileError, match="model.safetensors"):
        read_export(tmp_path / "ours")
    with pytest.raises(UnsafeFileError, match="model.safetensors is damaged"):
        read_export(tmp_path / "ours", verify_checksums=False)


# What a prior keeps of its training data.


NO_VALIDATION = FractionSplit(validation=0.0)  # the last step is kept, not the best, which may be that of the start


def predicted(model, *data, **options):
    return model.predict(*data, n_cells=9, progress=False, **options).X


@pytest.fixture
def with_cells(make_model, train, tmp_path):
    """A model whose prior holds cells, exported to ``export``."""
    model = train(make_model(prior="cells"))
    model.export(tmp_path / "export")
    return model


@pytest.mark.parametrize("prior", ["mean", "transfer", "cells", "response"])
def test_an_export_predicts_what_the_model_predicted_without_data(prior, make_model, train, screen, tmp_path):
    model = train(make_model(prior=prior))
    model.export(tmp_path / "export")
    again = TahoeST.from_pretrained(tmp_path / "export")
    assert again.prior == prior
    np.testing.assert_array_equal(predicted(again, screen), predicted(model))
    again.export(tmp_path / "again")
    np.testing.assert_array_equal(predicted(TahoeST.from_pretrained(tmp_path / "again"), screen), predicted(model))


def test_an_export_predicts_the_same_on_genes_in_any_order(with_cells, screen, register, train, tmp_path):
    expected = predicted(with_cells)
    shuffled = register(screen[:, np.random.default_rng(0).permutation(60)].copy())
    for data in (register(screen.copy()), shuffled):
        again = TahoeST.from_pretrained(tmp_path / "export", data)
        np.testing.assert_array_equal(predicted(again), expected)
        np.testing.assert_array_equal(predicted(again, output="prior"), predicted(with_cells, output="prior"))
        assert not again.loading_report_.notes
    again.save(tmp_path / "saved")
    np.testing.assert_array_equal(predicted(TahoeST.load(tmp_path / "saved", screen)), expected)
    assert not np.array_equal(predicted(train(again, split=NO_VALIDATION)), expected)


def test_a_prior_of_other_genes_is_left_out_and_learned_in_training(with_cells, screen, register, train, tmp_path):
    fewer = TahoeST.from_pretrained(tmp_path / "export", register(screen[:, :57].copy()))
    assert (fewer.prior, fewer.prior_) == ("cells", None)
    assert "prior of the weights, 'cells', is left out, as the data have other genes" in fewer.loading_report_.text()
    with pytest.raises(ValueError, match=r"prior='cells', which is learned in train\(\)"):
        predicted(fewer)
    assert predicted(train(fewer)).shape[1] == 57


def test_another_prior_is_used_if_the_network_sees_labels(with_cells, make_model, train, register, screen, tmp_path):
    assert not with_cells.module.config.sees_perturbation
    with pytest.raises(ValueError, match="sees_perturbation=False knows a perturbation by the cells of its prior"):
        TahoeST.from_pretrained(tmp_path / "export", register(screen), prior="none")
    seeing = train(make_model(prior="cells", network={"sees_perturbation": True}))
    seeing.export(tmp_path / "seeing")
    without = TahoeST.from_pretrained(tmp_path / "seeing", register(screen), prior="none")
    assert (without.prior, without.prior_) == ("none", None)
    assert without.module.config.base_encoder
    assert "left out, as prior='none' was asked for" in without.loading_report_.text()
    assert not np.array_equal(predicted(without), predicted(seeing))


def test_a_prior_that_was_not_learned_yet_is_exported_as_its_name(make_model, screen, tmp_path):
    make_model(prior="cells").export(tmp_path / "export")
    assert not (tmp_path / "export" / "prior.safetensors").exists()
    again = TahoeST.from_pretrained(tmp_path / "export")
    assert again.prior == "cells"
    with pytest.raises(ValueError, match=r"learned in train\(\)"):
        predicted(again, screen)


def test_the_model_card_says_that_the_folder_holds_cells(with_cells, make_model, train, tmp_path):
    card = (tmp_path / "export" / "README.md").read_text()
    assert "holds the expression of 288 perturbed cells of the training data" in card
    assert "| prior | cells, of 12 conditions |" in card
    assert "cells, of 12 conditions" in inspect_folder(tmp_path / "export")
    train(make_model(prior="transfer")).export(tmp_path / "means")
    assert "perturbed cells of the training data" not in (tmp_path / "means" / "README.md").read_text()


def test_arcs_format_has_no_prior(with_cells, tmp_path):
    with pytest.raises(ValueError, match="no counterpart for prior='cells'. Train a model with prior='none'"):
        with_cells.export(tmp_path / "arc", format="arc")
    assert not (tmp_path / "arc").exists()


FORGED_ARRAYS = {
    "another number of genes": (lambda a: {"means": a["means"][:, 1:].copy()}, "means has the shape"),
    "a missing condition": (lambda a: {"n_cells": a["n_cells"][1:].copy()}, "n_cells has the shape"),
    "no quantiles": (lambda a: {"control_quantiles": a["control_quantiles"][:, :0].copy()}, "quantiles are incomplete"),
    "one array more": (lambda a: {"extra": a["means"]}, "it has the arrays"),
    "another type": (lambda a: {"variances": a["variances"].astype(np.float64)}, "variances has the type"),
    "places that are no numbers": (lambda a: {"donor_condition": a["donor_condition"] * 1.0}, "has the type"),
    "infinite values": (lambda a: {"means": a["means"] * np.float32("inf")}, "not finite"),
    "a donor's gene out of range": (lambda a: {"donors.indices": a["donors.indices"] + 1}, "out of range"),
    "a donor's gene below zero": (lambda a: {"donors.indices": a["donors.indices"] - 60}, "out of range"),
    "rows that overlap": (lambda a: {"donors.indptr": a["donors.indptr"][::-1].copy()}, "out of range"),
    "more rows than owners": (lambda a: {"donors.indptr": np.append(a["donors.indptr"], 0)}, "incomplete"),
    "an unknown owner": (lambda a: {"donor_condition": a["donor_condition"] + 1}, "out of range"),
    "a condition without donors": (lambda a: {"donor_condition": a["donor_condition"] * 0}, "no donors"),
    "conditions of no cells": (lambda a: {"n_cells": a["n_cells"] * 0}, "out of range"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The export of a small model whose prior holds cells."""
    from scvi_tahoe.datasets import simulate_screen

    screen = simulate_screen(2, 3, n_genes=60, n_cells=8, n_control_cells=8)
    TahoeST.setup_anndata(screen, perturbation_key="perturbation", control="control", context_key="context")
    model = TahoeST(screen, size={"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2}, prior="cells")
    model.train(1, batch_size=2, progress=False)
    folder = tmp_path_factory.mktemp("prior") / "export"
    model.export(folder)
    return folder


@pytest.mark.parametrize(("change", "message"), FORGED_ARRAYS.values(), ids=list(FORGED_ARRAYS))
def test_arrays_that_are_no_prior_of_the_network_are_refused(change, message, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "export")
    arrays = load_file(folder / "prior.safetensors")
    save_file({**arrays, **change(arrays)}, folder / "prior.safetensors")
    with pytest.raises(UnsafeFileError, match="does not match its hash"):
        read_export(folder)
    with pytest.raises(UnsafeFileError, match=message):
        read_export(folder, verify_checksums=False)


FORGED_LABELS = {
    "another kind": ({"kind": "magic"}, "its kind is 'magic'"),
    "no conditions": ({"conditions": []}, "no conditions"),
    "conditions of a context without controls": ({"contexts": ["context_1"]}, r"no controls of \['context_2'\]"),
    "contexts that occur twice": ({"contexts": ["context_1", "context_2", "context_2"]}, "occurs twice"),
    "conditions that are none": ({"conditions": [["a"]]}, "incomplete or damaged"),
    "conditions that are missing": ({"conditions": None}, "incomplete or damaged"),
}


@pytest.mark.parametrize(("change", "message"), FORGED_LABELS.values(), ids=list(FORGED_LABELS))
def test_labels_that_do_not_fit_a_prior_are_refused(change, message, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "export")
    content = json.loads((folder / "config.json").read_text())
    content["prior"] |= change
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UnsafeFileError, match=message):
        read_export(folder)


def test_a_prior_file_missing_cut_short_or_without_a_hash_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "export")
    content = (folder / "prior.safetensors").read_bytes()
    (folder / "prior.safetensors").write_bytes(content[:-10])
    with pytest.raises(UnsafeFileError, match="prior.safetensors is damaged"):
        read_export(folder, verify_checksums=False)
    (folder / "prior.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="prior.safetensors"):
        read_export(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["sha256"]["prior.safetensors"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeFileError, match="no hashes"):
        read_export(folder)


# Weights without a prior as the start of a model with one.


def test_other_weights_get_no_prior_unless_asked(make_model, train, tmp_path):
    model = train(make_model())
    model.export(tmp_path / "export")
    assert TahoeST.from_pretrained(tmp_path / "export", model.adata).prior == "none"
    start = TahoeST.from_pretrained(tmp_path / "export", model.adata, prior="cells")
    encoder = {f"network.{name}" for name in start.module.network.state_dict() if name.startswith("base_encoder.")}
    new = {f"network.{record.tensor}" for record in start.loading_report_.records if record.status == "new"}
    assert start.module.config.base_encoder
    assert encoder == new
    assert not encoder & set(start.pretrained_parameters_)
    # until it is trained, the new encoder changes nothing
    control, perturbation = torch.rand(2, 8, 60), torch.eye(7)[:2]
    outputs = [m.module.network.eval()(control, perturbation).prediction_SNG for m in (model, start)]
    assert torch.equal(*outputs)
    before = start.module.network.base_encoder.layers[0].weight.clone()
    train(start, recipe="full", split=NO_VALIDATION)
    assert not torch.equal(start.module.network.base_encoder.layers[0].weight, before)


def test_a_prior_needs_a_delta_head_also_of_weights(make_model, train, with_cells, tmp_path):
    model = train(make_model(network={"head": "hidden_residual"}))
    model.export(tmp_path / "residual")
    options = {"adata": model.adata, "prior": "cells"}
    with pytest.raises(ValueError, match="head='hidden_residual' takes prior='none'"):
        TahoeST.from_pretrained(tmp_path / "residual", **options)
    other = {"accept": ("other_head",), "check_scale": False}
    start = TahoeST.from_pretrained(tmp_path / "residual", **options, network={"head": "delta"}, **other)
    config = start.module.config
    assert (start.prior, config.head, config.keep_zeros, config.base_encoder) == ("cells", "delta", True, True)
    start = TahoeST.from_pretrained(tmp_path / "export", with_cells.adata, network={"head": "absolute"}, **other)
    assert (start.prior, start.prior_, start.module.config.base_encoder) == ("none", None, False)
    assert "prior='none'" in start.loading_report_.text()


# Arc's format.


def test_arcs_format_returns_what_was_exported(each_golden, tmp_path):
    model = read_arc_folder(each_golden.folder.write(tmp_path / "arc"))
    write_arc_folder(model, tmp_path / "again")
    verify_equal(model, read_arc_folder(tmp_path / "again"))


OPTIONS = {
    "gpt2": {"backbone": "gpt2", "head_dim": 5, "confidence": True},
    "absolute over all genes": {"space": "all", "embed_key": None, "residual": False},
    "causal with rotary positions": {"flag": False, "n_kv": 1},
    "unstated attention": {"flag": None},
    "each cell sees itself": {"mask_attn": True},
    "residual decoder": {"embed_key": "X_state", "space": "all", "decoder": "residual"},
    "batch token": {"batch_token": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_every_variant_survives_arcs_format(options, arc, tmp_path):
    model = read_arc_folder(arc(**options).write(tmp_path / "arc"))
    write_arc_folder(model, tmp_path / "again")
    again = read_arc_folder(tmp_path / "again")
    verify_equal(model, again)
    assert again.provenance.attention_certain


def test_an_arc_export_holds_plain_values_and_no_table_of_zeros(model, tmp_path):
    write_arc_folder(model, tmp_path / "arc")
    path = tmp_path / "arc" / "checkpoints" / "final.ckpt"
    content = torch.load(path, weights_only=True)
    settings = content["hyper_parameters"]["transformer_backbone_kwargs"]
    assert settings["bidirectional_attention"] is True
    assert content["state_dict"]["transformer_backbone.embed_tokens.weight"].shape == (32_000, 48)
    assert path.stat().st_size < 1.2 * sum(4 * tensor.numel() for tensor in model.state_dict.values())
    assert all(type(name) is str for name in torch.load(tmp_path / "arc" / "pert_onehot_map.pt", weights_only=True))


ARC_REFUSALS = {
    "delta": ({}, "head='delta'"),
    "causal llama": ({"head": "absolute", "attention": "causal"}, "attention='causal'"),
    "full gpt2": ({"head": "absolute", "backbone": "gpt2", "intermediate": 32}, "always causal"),
    "narrow gpt2": ({"head": "absolute", "backbone": "gpt2", "attention": "causal"}, "4 \\* hidden"),
    "unrectified": ({"head": "absolute", "rectify": False}, "rectify=True"),
    "two kinds of batches": (
        {"head": "absolute", "n_batches": 2, "batch_token": True, "n_batch_classes": 2},
        "either a batch encoder or a batch token",
    ),
    "batches without labels": ({"head": "absolute", "n_batches": 3}, "as many batch labels"),
}


@pytest.mark.parametrize(("changes", "message"), ARC_REFUSALS.values(), ids=list(ARC_REFUSALS))
def test_what_arc_state_cannot_run_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_arc_folder(scratch(**changes), tmp_path / "arc")
    assert not (tmp_path / "arc").exists()


def test_without_a_control_label_there_is_no_arc_export():
    model = scratch(head="absolute")
    assert arc_refusals(model) == []
    assert arc_refusals(replace(model, labels=replace(model.labels, control=None))) == ["it needs a control label"]


# Inspection.


def test_an_inspection_tells_what_a_folder_holds(each_golden):
    text = inspect_folder(each_golden.folder.write())
    for word in ("attention", "set size", "non-targeting", "dropped", "Non-Commercial", "checkpoints/final.ckpt"):
        assert word in text


def test_a_description_marks_what_is_assumed_and_what_arc_lacks(arc):
    assert "[assumed]" in describe(read_arc_folder(arc(flag=None).write()))
    assert "head='delta' has no counterpart" in describe(scratch())


# Tables.


def test_a_perturbation_table_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="occurs twice"):
        EmbeddingTable.one_hot_of(("a", "a"))
    with pytest.raises(ValueError, match="disagree"):
        EmbeddingTable(("a",), np.ones((2, 3)))
    with pytest.raises(KeyError, match="'b'"):
        EmbeddingTable.one_hot_of(("a",)).row("b")


def test_a_format_is_found_by_name_or_the_error_lists_what_there_is(model, tmp_path):
    FORMATS.find("arc").write(model, tmp_path / "arc", overwrite=False)
    verify_equal(read_pretrained(tmp_path / "arc"), model)
    with pytest.raises(ValueError, match="no format .arcs. .did you mean .arc.*choose one of"):
        FORMATS.find("arcs")


@pytest.fixture
def cited():
    """The format that the guide adds as an example; forgotten afterwards."""
    guide = (Path(__file__).parents[2] / "docs" / "how_to_add.md").read_text()
    example = guide[guide.index("## ... format of model folders") :].split("```python\n")[1].split("```")[0]
    exec(example, {"__name__": "example"})
    yield "cited"
    del FORMATS["cited"]


def test_a_format_of_one_file_is_written_and_read_everywhere(cited, make_model, train, tmp_path):
    model = train(make_model(), max_steps=1)
    model.export(tmp_path / "cited", format=cited)
    again = TahoeST.from_pretrained(tmp_path / "cited")
    for name, tensor in model.module.network.state_dict().items():
        assert torch.equal(again.module.network.state_dict()[name], tensor)
    assert "backbone" in inspect_folder(tmp_path / "cited")
    with pytest.raises(FileExistsError, match="exists; give overwrite=True"):
        model.export(tmp_path / "cited", format=cited)
    model.export(tmp_path / "cited", format=cited, overwrite=True)
    with pytest.raises(ValueError, match="backbone_from has no effect"):
        model.export(tmp_path / "other", format=cited, backbone_from=tmp_path / "cited")
