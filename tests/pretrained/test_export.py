"""Round trips through our own format and Arc's are bit-identical; damaged or foreign folders are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scvi_tahoe.nn import NetworkConfig, SetTransformer
from scvi_tahoe.pretrained import (
    Labels,
    PerturbationTable,
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

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def verify_equal(a: PretrainedModel, b: PretrainedModel) -> None:
    assert a.config == b.config
    assert a.state_dict.keys() == b.state_dict.keys()
    assert all(torch.equal(a.state_dict[name], b.state_dict[name]) for name in a.state_dict)
    assert a.perturbations.names == b.perturbations.names
    names = a.perturbations.names
    assert (a.perturbations.vectors(names) == b.perturbations.vectors(names)).all()
    for name in ("genes", "decoder_genes", "control", "batches", "contexts", "embedding", "set_size"):
        assert getattr(a.labels, name) == getattr(b.labels, name)
    assert a.loss == b.loss


@pytest.fixture
def model(golden_folder: Callable[..., Path]) -> PretrainedModel:
    return read_arc_folder(golden_folder("expr_all_feat"))


def scratch(**changes: Any) -> PretrainedModel:
    sizes = {"n_input": 9, "n_output": 9, "n_perturbation": 3, "hidden": 8, "n_layers": 1, "intermediate": 8}
    config = NetworkConfig(**{**sizes, "n_heads": 2, **changes})
    labels = Labels(
        genes=tuple("abcdefghi"),
        perturbations=PerturbationTable(("control", "x", "y")),
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


def test_our_format_returns_what_was_exported(each_golden: Any, tmp_path: Path) -> None:
    model = read_arc_folder(each_golden.folder.write(tmp_path / "arc"))
    export_model(replace(model, extra={"note": [1, "two"]}), tmp_path / "ours")
    again = read_export(tmp_path / "ours")
    verify_equal(model, again)
    assert again.output_space == model.output_space
    assert again.extra == {"note": [1, "two"]}
    assert again.provenance == model.provenance


def test_an_export_holds_no_pickle_and_says_what_it_is(model: PretrainedModel, tmp_path: Path) -> None:
    export_model(model, tmp_path / "ours")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "perturbations.safetensors",
        "README.md",
        "LICENSE_NOTICE.md",
    }
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "Non-Commercial" in card
    assert "full (bidirectional_attention is true)" in card
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()


def test_weights_from_scratch_carry_no_licence_of_others(tmp_path: Path) -> None:
    export_model(scratch(), tmp_path / "ours")
    assert not (tmp_path / "ours" / "LICENSE_NOTICE.md").exists()
    verify_equal(read_export(tmp_path / "ours"), read_pretrained(tmp_path / "ours"))


def test_an_unchanged_backbone_can_be_saved_by_reference(model: PretrainedModel, tmp_path: Path) -> None:
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


def test_an_existing_folder_is_replaced_only_on_request(model: PretrainedModel, tmp_path: Path) -> None:
    export_model(model, tmp_path / "ours")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_model(model, tmp_path / "ours")
    export_model(model, tmp_path / "ours", overwrite=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="no model folder"):
        export_model(model, tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_an_export_that_fails_leaves_nothing_behind(model: PretrainedModel, tmp_path: Path) -> None:
    target = tmp_path / "place" / "ours"
    with pytest.raises(TypeError):
        export_model(replace(model, extra={"x": object()}), target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "perturbations.safetensors"])
def test_an_altered_file_is_refused(model: PretrainedModel, tmp_path: Path, name: str) -> None:
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
        ({"sha256": {"model.safetensors": "", "../secret": ""}}, "hash|name inside"),
    ],
)
def test_an_altered_configuration_is_refused(
    model: PretrainedModel, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    export_model(model, tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnsafeFileError, match=message):
        read_export(tmp_path / "ours")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    export_model(scratch(), tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    content = json.loads(path.read_text())
    content["network"]["hidden"], content["network"]["head_dim"] = 12, 6
    path.write_text(json.dumps(content))
    with pytest.raises(UnsafeFileError, match="disagree about"):
        read_export(tmp_path / "ours")


@pytest.mark.parametrize("kept", [4, 100])
def test_a_truncated_export_is_refused(tmp_path: Path, kept: int) -> None:
    export_model(scratch(), tmp_path / "ours")
    path = tmp_path / "ours" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnsafeFileError, match="model.safetensors"):
        read_export(tmp_path / "ours")
    with pytest.raises(UnsafeFileError, match="model.safetensors is damaged"):
        read_export(tmp_path / "ours", verify_checksums=False)


def test_options_of_the_other_format_are_refused(tmp_path: Path) -> None:
    export_model(scratch(), tmp_path / "ours")
    assert is_export(tmp_path / "ours")
    with pytest.raises(ValueError, match="our own format"):
        read_pretrained(tmp_path / "ours", "best")


# Arc's format.


def test_arcs_format_returns_what_was_exported(each_golden: Any, tmp_path: Path) -> None:
    model = read_arc_folder(each_golden.folder.write(tmp_path / "arc"))
    write_arc_folder(model, tmp_path / "again")
    verify_equal(model, read_arc_folder(tmp_path / "again"))


OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"backbone": "gpt2", "head_dim": 5, "confidence": True},
    "absolute over all genes": {"space": "all", "embed_key": None, "residual": False},
    "causal with rotary positions": {"flag": False, "n_kv": 1},
    "unstated attention": {"flag": None},
    "each cell sees itself": {"mask_attn": True},
    "residual decoder": {"embed_key": "X_state", "space": "all", "decoder": "residual"},
    "batch token": {"batch_token": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_every_variant_survives_arcs_format(options: dict[str, Any], arc: Callable[..., Any], tmp_path: Path) -> None:
    model = read_arc_folder(arc(**options).write(tmp_path / "arc"))
    write_arc_folder(model, tmp_path / "again")
    again = read_arc_folder(tmp_path / "again")
    verify_equal(model, again)
    assert again.provenance.attention_certain


def test_an_arc_export_holds_plain_values_and_no_table_of_zeros(model: PretrainedModel, tmp_path: Path) -> None:
    write_arc_folder(model, tmp_path / "arc")
    path = tmp_path / "arc" / "checkpoints" / "final.ckpt"
    content = torch.load(path, weights_only=True)
    settings = content["hyper_parameters"]["transformer_backbone_kwargs"]
    assert settings["bidirectional_attention"] is True
    assert content["state_dict"]["transformer_backbone.embed_tokens.weight"].shape == (32_000, 48)
    assert path.stat().st_size < 1.2 * sum(4 * tensor.numel() for tensor in model.state_dict.values())
    assert all(type(name) is str for name in torch.load(tmp_path / "arc" / "pert_onehot_map.pt", weights_only=True))


ARC_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "delta": ({}, "head='delta'"),
    "causal llama": ({"head": "absolute", "attention": "causal"}, "attention='causal'"),
    "full gpt2": ({"head": "absolute", "backbone": "gpt2", "intermediate": 32}, "always causal"),
    "narrow gpt2": ({"head": "absolute", "backbone": "gpt2", "attention": "causal"}, "4 \\* hidden"),
    "unrectified": ({"head": "absolute", "rectify": False}, "rectify=True"),
    "two kinds of batches": (
        {"head": "absolute", "n_batches": 2, "batch_token": True, "n_batch_classes": 2},
        "either a batch encoder or a batch token",
    ),
    "batches without labels": ({"head": "absolute", "n_batches": 3}, "number of batch labels"),
}


@pytest.mark.parametrize(("changes", "message"), ARC_REFUSALS.values(), ids=list(ARC_REFUSALS))
def test_what_arc_state_cannot_run_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_arc_folder(scratch(**changes), tmp_path / "arc")
    assert not (tmp_path / "arc").exists()


def test_without_a_control_label_there_is_no_arc_export() -> None:
    model = scratch(head="absolute")
    assert arc_refusals(model) == []
    assert arc_refusals(replace(model, labels=replace(model.labels, control=None))) == ["it needs a control label"]


# Inspection.


def test_an_inspection_tells_what_a_folder_holds(each_golden: Any, tmp_path: Path) -> None:
    text = inspect_folder(each_golden.folder.write(tmp_path / "folder"))
    for word in ("attention", "set size", "non-targeting", "dropped", "Non-Commercial", "checkpoints/final.ckpt"):
        assert word in text


def test_an_assumed_attention_is_marked(arc: Callable[..., Any], tmp_path: Path) -> None:
    text = describe(read_arc_folder(arc(flag=None).write(tmp_path / "folder")))
    assert "[assumed]" in text


def test_a_model_of_ours_is_described_too() -> None:
    assert "head='delta' has no counterpart" in describe(scratch())


# Tables.


def test_a_perturbation_table_refuses_what_does_not_fit() -> None:
    import numpy as np

    with pytest.raises(ValueError, match="occurs twice"):
        PerturbationTable(("a", "a"))
    with pytest.raises(ValueError, match="disagree"):
        PerturbationTable(("a",), np.ones((2, 3)))
    with pytest.raises(KeyError, match="'b'"):
        PerturbationTable(("a",)).vectors(["b"])
    assert PerturbationTable(("a", "b"), np.array([[0.0, 0.0], [1.0, 0.0]])).zero_names == ("a",)
