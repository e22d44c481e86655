"""The State Embedding network gives the numbers of Arc's program, and its folder is read whole or refused."""

from __future__ import annotations

import sys
import types
from collections import defaultdict

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from se_folder import GOLDEN, SETTINGS, proteins, tensors, write_folder

from scvi_tahoe.pretrained import UnsafeFileError, read_state_embedding

RUNS = [(f"toy_{name}", seed) for name in "abc" for seed in ("seed1", "seed2")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_state_embedding(write_folder(tmp_path_factory.mktemp("se") / "model"))


@pytest.fixture(scope="module")
def genes_GD(model):
    return model.network.encode_genes(torch.from_numpy(np.stack(list(model.proteins.values()))))


def _inputs(screen, seed):
    slots, counts = (torch.from_numpy(GOLDEN[f"{screen}/{seed}/{key}"]) for key in ("token_ids", "token_counts"))
    return slots.long(), counts


@pytest.mark.parametrize(("screen", "seed"), RUNS)
def test_the_same_slots_give_the_embeddings_of_arcs_program(model, genes_GD, screen, seed):
    embedded = model.network(genes_GD, *_inputs(screen, seed))
    assert np.abs(embedded.numpy() - GOLDEN[f"{screen}/{seed}/X_state"]).max() < 3e-5
    assert torch.allclose(embedded[:, :24].norm(dim=1), torch.ones(len(embedded)))


@pytest.mark.parametrize("screen", ["toy_a", "toy_b", "toy_c"])
def test_every_stage_of_the_network_agrees(model, genes_GD, screen):
    slots, counts = _inputs(screen, "seed1")
    tokens = model.network.tokens(genes_GD, slots, counts).numpy()
    assert np.abs(tokens[:3] - GOLDEN[f"{screen}/seed1/layers_in"]).max() < 1e-5
    output = model.network._output(genes_GD, slots, counts).numpy()
    for i, part in enumerate(("cls_raw", "dataset_raw")):
        assert np.abs(output[:, i] - GOLDEN[f"{screen}/seed1/{part}"]).max() < 3e-5


def test_the_order_of_slots_and_the_other_cells_of_a_batch_have_no_meaning(model, genes_GD):
    slots, counts = _inputs("toy_a", "seed1")
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(63, generator=torch.manual_seed(0))])
    expected = model.network(genes_GD, slots, counts)
    assert torch.allclose(model.network(genes_GD, slots[:, order], counts[:, order]), expected, atol=3e-5)
    assert torch.allclose(model.network(genes_GD, slots[4:5], counts[4:5]), expected[4:5], atol=1e-6)


def test_the_network_has_no_dropout_and_needs_no_gradient(model):
    assert not [module for module in model.network.modules() if isinstance(module, torch.nn.Dropout)]
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_only_what_embedding_needs_must_be_in_the_file_and_compiled_names_are_known(tmp_path):
    state = {name: x for name, x in tensors().items() if not name.startswith(("pe_", "gene_", "dataset_enc", "binary"))}
    state = {name.replace("encoder.layers", "encoder._orig_mod.layers"): x for name, x in state.items()}
    model = read_state_embedding(write_folder(tmp_path / "m", state, weights="se600m_epoch4.safetensors"))
    assert model.checkpoint == "se600m_epoch4.safetensors"
    assert (model.network.config.n_layers, model.network.config.width) == (2, 34)


def test_the_shapes_of_the_weights_decide_and_the_config_may_be_missing(tmp_path):
    state = tensors()
    folder = write_folder(tmp_path / "m", state, settings={"model": {"nhead": 8, "nlayers": 7, "emsize": 5}})
    assert read_state_embedding(folder).network.config.n_heads == 8
    (folder / "config.yaml").unlink()
    model = read_state_embedding(folder)
    assert (model.n_slots, model.lender, model.network.config.n_heads) == (2048, 3, 16)


def _without(name):
    return lambda state: {key: x for key, x in state.items() if key != name}


DAMAGE = {
    "a tensor is missing": (_without("cls_token"), "1 are missing or of another shape .*cell_token"),
    "the data set's token is missing": (_without("dataset_token"), "dataset_token"),
    "a tensor is unknown": (lambda state: {**state, "surprise": torch.ones(2)}, "1 tensors are unknown .*surprise"),
    "the copies of the encoder differ": (
        lambda state: {**state, "gene_embedding_layer.0.bias": torch.ones(32)}, "differs from its copy"
    ),
    "a shape is wrong": (lambda state: {**state, "bin_encoder.weight": torch.ones(9, 32)}, "bins"),
    "a number is not finite": (lambda state: {**state, "decoder.1.bias": torch.full((24,), torch.nan)}, "not finite"),
    "numbers are integers": (lambda state: {**state, "decoder.1.bias": torch.ones(24).int()}, "decoder.1.bias"),
    "there are no blocks": (lambda state: {"encoder.0.weight": state["encoder.0.weight"]}, "number of layers"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_weights_of_something_else_are_refused(tmp_path, refused, damage, message):
    folder = write_folder(tmp_path / "m", damage(tensors()))
    refused(folder, message, read=read_state_embedding)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": {"pad_length": 10**9}}, "pad_length"),
        ({"dataset": {"cls_token_idx": -1}}, "cls_token_idx"),
        ({"model": {"nhead": "four"}}, "nhead"),
        ({"model": {"nhead": 5}}, "cannot share"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        read_state_embedding(write_folder(tmp_path / "m", settings=settings))


class Elsewhere:
    """An object of a program that is not installed where the checkpoint is read."""


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint as Arc's program writes it: tensors, numbers, its configuration as text, and objects of its own."""

    def write(folder, **more):
        program = types.ModuleType("elsewhere")
        program.Elsewhere = Elsewhere
        monkeypatch.setattr(Elsewhere, "__module__", "elsewhere")
        monkeypatch.setitem(sys.modules, "elsewhere", program)
        collator = Elsewhere()
        collator.tables = {"a": np.zeros(4)}
        groups = defaultdict(dict, {"x": {"y": 1}})
        content = {
            "state_dict": tensors(), "optimizer_states": [{"exp_avg": torch.ones(3)}],
            "hyper_parameters": {"nhead": 4, "cfg": collator, "collater": groups},
            "cfg_yaml": yaml.safe_dump(SETTINGS), "protein_embeds_dict": proteins(),
        }  # fmt: skip
        folder.mkdir(exist_ok=True)
        torch.save({**content, **more}, folder / "se_epoch16.ckpt")
        monkeypatch.delitem(sys.modules, "elsewhere")
        return folder

    return write


def test_a_checkpoint_gives_the_same_model_without_the_program_that_wrote_it(model, checkpoint, tmp_path):
    found = read_state_embedding(checkpoint(tmp_path / "ckpt"))
    assert found.checkpoint == "se_epoch16.ckpt"
    assert (found.n_slots, found.lender) == (model.n_slots, model.lender)
    state = found.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.network.state_dict().items())
    assert found.proteins.keys() == model.proteins.keys()
    assert "elsewhere" not in sys.modules


def test_nothing_in_a_checkpoint_is_executed(checkpoint, tmp_path, payload, refused):
    class Evaluated:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'executed')!r}, 'w')",)

    refused(checkpoint(tmp_path / "system", extra=payload), "blocked|posix", read=read_state_embedding)
    read_state_embedding(checkpoint(tmp_path / "eval", extra=Evaluated()))
    assert not (tmp_path / "executed").exists()


def test_safetensors_come_before_checkpoints_and_a_choice_is_the_users(checkpoint, tmp_path):
    folder = checkpoint(write_folder(tmp_path / "m"))
    assert read_state_embedding(folder).checkpoint == "model.safetensors"
    assert read_state_embedding(folder, "se_epoch16.ckpt").checkpoint == "se_epoch16.ckpt"
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "se_epoch4.ckpt")
    with pytest.raises(
        FileNotFoundError, match=r"'se_epoch16\.ckpt', 'se_epoch4\.ckpt'\]; choose one with checkpoint="
    ):
        read_state_embedding(folder)
    with pytest.raises(UnsafeFileError, match="damaged"):
        read_state_embedding(folder, "se_epoch4.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither \*\.safetensors nor \*\.ckpt"):
        read_state_embedding(tmp_path / "empty")


def test_a_state_transition_model_is_told_from_a_state_embedding_model(golden_folder):
    with pytest.raises(FileNotFoundError, match=r"a State Transition model, which TahoeST\.from_pretrained reads"):
        read_state_embedding(golden_folder())


def test_protein_embeddings_are_needed_and_must_be_those_of_the_weights(tmp_path, payload):
    folder = write_folder(tmp_path / "m")
    elsewhere = (folder / "protein_embeddings.pt").rename(tmp_path / "elsewhere.pt")
    with pytest.raises(FileNotFoundError, match=r"no protein_embeddings\.pt.*--protein-embeddings"):
        read_state_embedding(folder)
    assert len(read_state_embedding(folder, protein_embeddings=elsewhere).proteins) == 120
    torch.save({name: x[:7] for name, x in proteins().items()}, elsewhere)
    with pytest.raises(ValueError, match=r"width 7 .* takes 40: it is the table of another model"):
        read_state_embedding(folder, protein_embeddings=elsewhere)
    torch.save({"GENE000": payload}, folder / "protein_embeddings.pt")
    with pytest.raises(UnsafeFileError, match="refused"):
        read_state_embedding(folder)
    assert not (tmp_path / "executed").exists()


def test_a_file_of_weights_cut_short_is_refused(tmp_path, refused):
    folder = write_folder(tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(folder, "damaged", read=read_state_embedding)


def test_the_licence_is_arcs_unless_the_model_card_states_a_free_one(tmp_path):
    folder = write_folder(tmp_path / "m")
    assert "Non-Commercial" in read_state_embedding(folder).licence
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert read_state_embedding(folder).licence == "Their authors state the licence mit."


def test_weights_in_half_precision_become_float32(tmp_path):
    folder = write_folder(tmp_path / "m", {name: x.half() for name, x in tensors().items()})
    assert {x.dtype for x in read_state_embedding(folder).network.state_dict().values()} == {torch.float32}
    save_file(tensors(), folder / "other.safetensors")
    assert read_state_embedding(folder, "other.safetensors").checkpoint == "other.safetensors"
