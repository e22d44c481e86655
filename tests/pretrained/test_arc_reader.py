"""Every layout of Arc's folders is read; what they leave open is decided by a rule the result states."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
import yaml

from scvi_tahoe.pretrained import UnsafeFileError, list_checkpoints, read_arc_folder

BACKBONE = "transformer_backbone"


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("maps", ["torch", "pkl"])
@pytest.mark.parametrize("checkpoint", ["final.ckpt", "checkpoints/final.ckpt", "checkpoints/best.ckpt"])
def test_every_layout_of_a_folder_holds_the_same_model(golden, tmp_path, checkpoint, maps):
    folder = golden("expr_all_feat").folder
    model = read_arc_folder(folder.write(tmp_path / "a", checkpoint=checkpoint, maps=maps))
    reference = read_arc_folder(folder.write(tmp_path / "b"))
    assert same_weights(model.state_dict, reference.state_dict)
    assert model.batches == ("b0", "b1", "b2")
    assert model.contexts == ("K562", "RPE1")


def test_labels_and_settings_come_with_the_weights(golden_folder):
    model = read_arc_folder(golden_folder("state_all_feat"))
    assert (model.control, model.embed_key, model.genes, model.set_size) == ("non-targeting", "X_state", None, 16)
    assert model.labels.decoder_genes[:2] == ("GENE0", "GENE1")
    assert (model.perturbations.names[0], model.perturbations.width) == ("GENE0", 32)
    assert (model.loss.loss, model.loss.decoder_weight, model.output_space) == ("energy", 0.5, "all")
    assert model.provenance.non_commercial


def test_one_hot_labels_come_in_the_order_of_the_inputs(arc):
    folder = arc()
    folder.perturbations = dict(reversed(folder.perturbations.items()))
    table = read_arc_folder(folder.write()).perturbations
    assert table.one_hot
    assert table.names == ("control", "P0", "P1", "P2", "P3")


def write_three(folder, path):
    for step, name in ((1, "step=100-val_loss=0.5"), (2, "step=2000-val_loss=0.4"), (3, "best")):
        folder.state["pert_encoder.0.bias"] = torch.full((20,), float(step))
        folder.write(path, checkpoint=f"checkpoints/{name}.ckpt")
    return path


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, 3),
        ("best", 3),
        ("best.ckpt", 3),
        ("checkpoints/best.ckpt", 3),
        ("step=100", 1),
        ("step=2000", 2),
        ("step=2000-val_loss=0.4.ckpt", 2),
    ],
)
def test_a_checkpoint_is_chosen_by_kind_step_or_name(arc, tmp_path, choice, expected):
    model = read_arc_folder(write_three(arc(), tmp_path / "folder"), choice)
    assert float(model.state_dict["perturbation_encoder.layers.0.bias"][0]) == expected


def test_a_dangling_link_is_passed_over_and_the_highest_step_read(arc, tmp_path):
    folder = write_three(arc(), tmp_path / "folder")
    (folder / "checkpoints" / "last.ckpt").symlink_to("gone.ckpt")
    assert read_arc_folder(folder).provenance.checkpoint == "best.ckpt"
    (folder / "checkpoints" / "best.ckpt").unlink()
    assert read_arc_folder(folder).provenance.checkpoint == "step=2000-val_loss=0.4.ckpt"


def test_a_checkpoint_is_found_by_its_path_or_the_error_says_why(golden_folder, tmp_path):
    folder = golden_folder("hvg_causal")
    assert read_arc_folder(folder / "checkpoints" / "final.ckpt").genes == read_arc_folder(folder).genes
    assert list_checkpoints(folder) == ["checkpoints/final.ckpt"]
    for path, choice, message in (
        (folder, "best", r"no checkpoint 'best'.*final\.ckpt"),
        (tmp_path / "nowhere", None, "is not a folder"),
        (tmp_path, None, r"no \*.ckpt"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            read_arc_folder(path, choice)


def test_hyper_parameters_may_lie_beside_the_checkpoint(arc):
    folder = arc()
    hyper, folder.hyper = folder.hyper, {}
    path = folder.write()
    (path / "version_0").mkdir()
    text = yaml.safe_dump(hyper).replace("cell_set_len: 8", "cell_set_len: " + NUMPY_EIGHT)
    (path / "version_0" / "hparams.yaml").write_text(text)
    assert read_arc_folder(path).set_size == 8


NUMPY_EIGHT = """&id002 !!python/object/apply:numpy._core.multiarray.scalar
- &id001 !!python/object/apply:numpy.dtype
  args:
  - i8
  - false
  - true
  state: !!python/tuple
  - 3
  - <
  - null
  - null
  - null
  - -1
  - -1
  - 0
- !!binary |
  CAAAAAAAAAA="""


def test_numpy_scalars_are_read_as_plain_values(arc):
    folder = arc()
    folder.hyper |= {"cell_set_len": np.int64(8), "dropout": np.float32(0.25), "control_pert": np.str_("control")}
    folder.perturbations = {np.str_(name): row for name, row in folder.perturbations.items()}
    path = folder.write()
    (path / "var_dims.pkl").write_bytes(pickle.dumps({"gene_names": list(np.array(["x"])), "n": np.int64(3)}))
    model = read_arc_folder(path)
    assert type(model.set_size) is int
    assert type(model.control) is str
    assert model.config.dropout == 0.25
    assert all(type(name) is str for name in model.perturbations.names)


# Attention.


@pytest.mark.parametrize(
    ("options", "attention", "certain"),
    [
        ({"flag": True}, "full", True),
        ({"flag": False}, "causal_rope", True),
        ({"flag": None}, "full", False),
        ({"mask_attn": True}, "self_only", True),
        ({"backbone": "gpt2", "head_dim": 5}, "causal", True),
    ],
)
def test_attention_follows_the_rule_and_says_so(arc, options, attention, certain):
    folder = arc(**options).write()
    model = read_arc_folder(folder)
    assert model.config.attention == attention
    assert model.provenance.attention_certain is certain
    assert model.provenance.attention_reason
    assert any("diagnose_attention" in note for note in model.notes) is not certain
    decided = read_arc_folder(folder, attention="causal")
    assert (decided.config.attention, decided.provenance.attention_reason) == ("causal", "given by the user")


# What is left out, and what is refused.


def test_the_report_names_every_tensor_and_the_dropped_table(each_golden):
    model = read_arc_folder(each_golden.folder.write())
    assert model.report is not None
    assert model.report.loaded == set(model.state_dict)
    table = model.report.table
    assert list(table.loc[table.status == "dropped", "detail"]) == ["unused table of zeros"]
    assert "loaded" in model.report.text()


@pytest.mark.parametrize(("key", "space"), [(None, "all"), ("X_hvg", "gene")])
def test_a_decoder_that_never_trained_is_left_out_and_named(arc, key, space):
    model = read_arc_folder(arc(embed_key=key, space=space, decoder="plain").write())
    assert model.config.gene_decoder is None
    assert "never trained" in model.report.text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log1p_from_raw_counts": True}, "log1p_from_raw_counts"),
        ({"transformer_backbone_key": "mamba"}, "mamba"),
        ({"transformer_backbone_kwargs": {}}, "num_attention_heads"),
        ({"transformer_backbone_kwargs": {"num_attention_heads": 10**9}}, "num_attention_heads"),
        ({"transformer_backbone_kwargs": None}, "transformer_backbone_kwargs"),
        ({"cell_set_len": None}, "set size"),
        ({"cell_set_len": 10**12}, "set size"),
        ({"output_space": "moon"}, "moon"),
        ({"lr": "fast"}, "loss setting"),
        ({"dropout": 3.0}, "impossible network"),
        ({"transformer_backbone_kwargs": {"num_attention_heads": 5, "head_dim": 6}}, "rows of q_proj"),
    ],
)
def test_hyper_parameters_that_cannot_be_are_refused(arc, change, message):
    folder = arc()
    folder.hyper |= change
    with pytest.raises(ValueError, match=message):
        read_arc_folder(folder.write())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stranger.weight": torch.ones(2, 2)}, "no known meaning"),
        ({"pert_encoder.3.bias": None}, "lacks 1 tensors"),
        ({"project_out.0.weight": torch.ones(20, 21)}, "has shape"),
        ({"pert_encoder.0.weight": None}, "no complete pert_encoder"),
        ({"pert_encoder.0.bias": torch.full((20,), torch.nan)}, "not finite"),
        ({"pert_encoder.0.bias": torch.ones(20, dtype=torch.int64)}, "floating-point"),
        ({"pert_encoder.0.weight": torch.ones(20)}, "matrix is expected"),
        ({"pert_encoder.0.bias": [1.0] * 20}, "not a tensor"),
    ],
)
def test_tensors_must_match_one_to_one(arc, change, message):
    folder = arc()
    for name, tensor in change.items():
        if tensor is None:
            del folder.state[name]
        else:
            folder.state[name] = tensor
    with pytest.raises(UnsafeFileError, match=message):
        read_arc_folder(folder.write())


def test_maps_of_another_model_are_refused(arc, tmp_path):
    folder = arc(batch_encoder=True)
    del folder.batches["c"]
    with pytest.raises(UnsafeFileError, match="one-hot"):
        read_arc_folder(folder.write(tmp_path / "a"))
    folder = arc()
    del folder.perturbations["P3"]
    path = folder.write(tmp_path / "b")
    torch.save({f"p{i}": row for i, row in enumerate(torch.eye(4))}, path / "pert_onehot_map.pt")
    with pytest.raises(UnsafeFileError, match="do not belong together"):
        read_arc_folder(path)


def test_a_missing_map_is_named_if_it_is_needed(golden_folder):
    folder = golden_folder()
    for name in ("var_dims.pkl", "cell_type_onehot_map.torch"):
        (folder / name).unlink()
    assert read_arc_folder(folder).contexts is None
    for name in ("batch_onehot_map.torch", "pert_onehot_map.pt"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name.split(".")[0]):
            read_arc_folder(folder)


def test_genes_that_the_folder_does_not_name_can_be_given(arc, golden_folder):
    folder = arc()
    folder.hyper["gene_names"] = [f"G{i}" for i in range(62_710)]
    path = folder.write()
    model = read_arc_folder(path)
    assert model.genes is None
    assert any("does not name the genes of the network, 24" in note for note in model.notes)
    names = [f"HVG{i}" for i in range(24)]
    assert read_arc_folder(path, genes=names).genes == tuple(names)
    with pytest.raises(ValueError, match="23 gene names"):
        read_arc_folder(path, genes=names[1:])
    with pytest.raises(ValueError, match="embeddings"):
        read_arc_folder(golden_folder("state_emb_only"), genes=names)


def test_lora_is_folded_and_said_to_be(golden_folder, arc):
    model = read_arc_folder(golden_folder("expr_all_lora"))
    assert "LoRA folded in" in set(model.report.table.detail)
    assert not any("lora" in name for name in model.state_dict)
    folder, expected = lora_gpt2(arc)  # whose matrices are transposed
    state = read_arc_folder(folder.write()).state_dict
    torch.testing.assert_close(state["backbone.blocks.0.attention.qkv.weight"], expected.T.contiguous())


def lora_gpt2(arc):
    folder = arc(backbone="gpt2", head_dim=5)
    a, b = torch.ones(2, 20), torch.randn(60, 2, generator=torch.Generator().manual_seed(3))
    plain = folder.state[f"{BACKBONE}.h.0.attn.c_attn.weight"]
    moved = {}
    for name, tensor in folder.state.items():
        name = name.replace(f"{BACKBONE}.", f"{BACKBONE}.base_model.model.")
        name = name.replace("h.0.attn.c_attn.", "h.0.attn.c_attn.base_layer.")
        moved[name] = tensor
    stem = f"{BACKBONE}.base_model.model.h.0.attn.c_attn"
    folder.state = {**moved, f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}
    folder.hyper["lora"] = {"alpha": 6}
    return folder, plain + 3 * (b @ a).T


@pytest.mark.parametrize(
    ("change", "message"), [("alpha", "lora.alpha"), ("partner", "incomplete"), ("stray", "adapts no matrix")]
)
def test_incomplete_lora_is_refused(arc, change, message):
    folder, _ = lora_gpt2(arc)
    stem = f"{BACKBONE}.base_model.model.h.0"
    if change == "alpha":
        folder.hyper["lora"] = {}
    elif change == "partner":
        del folder.state[f"{stem}.attn.c_attn.lora_B.default.weight"]
    else:
        folder.state[f"{stem}.mlp.c_fc.lora_A.default.weight"] = torch.ones(2, 20)
    with pytest.raises(UnsafeFileError, match=message):
        read_arc_folder(folder.write())


def test_half_precision_weights_are_read_as_single(arc):
    folder = arc()
    folder.state = {name: tensor.half() for name, tensor in folder.state.items()}
    state = read_arc_folder(folder.write()).state_dict
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_weights_outlive_their_file(golden_folder):
    folder = golden_folder()
    model = read_arc_folder(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict.items()}
    with (folder / "checkpoints" / "final.ckpt").open("r+b") as stream:
        stream.write(os.urandom(200_000))
    assert same_weights(model.state_dict, before)
