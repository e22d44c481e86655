"""The network by its properties: shapes, symmetry, padding, starting point, and refused configurations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from scvi_tahoe.nn import SIZES, GeneDecoderConfig, NetworkConfig, SetTransformer

SMALL = {"n_input": 16, "n_output": 16, "n_perturbation": 5, "hidden": 20, "n_layers": 2, "intermediate": 24}
SMALL |= {"n_heads": 4, "head_dim": 6}
EVERYTHING = {
    **SMALL,
    "n_kv_heads": 2,
    "n_batches": 3,
    "batch_token": True,
    "n_batch_classes": 3,
    "confidence_token": True,
    "gene_decoder": GeneDecoderConfig(n_genes=7, hidden=(8, 8), residual=True),
}
GPT2 = {**SMALL, "backbone": "gpt2", "head_dim": 5, "attention": "causal"}
HEADS = ("delta", "hidden_residual", "absolute", "down_up")
ATTENTIONS = ("full", "causal", "causal_rope", "self_only")


def build(**changes):
    torch.manual_seed(0)
    return SetTransformer(NetworkConfig(**{**SMALL, **changes})).eval()


def cells(n_sets=2, n_cells=6, width=16):
    return torch.rand(n_sets, n_cells, width, generator=torch.Generator().manual_seed(1))


def perturbations(n_sets=2):
    return torch.rand(n_sets, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_part_returns_its_shape(head, attention):
    network = build(**{**EVERYTHING, "head": head, "attention": attention})
    output = network(cells(), perturbations(), torch.tensor([[0], [2]]))
    shapes = {name: tuple(part.shape) for name, part in output._asdict().items()}
    assert shapes == {
        "prediction_SNG": (2, 6, 16), "genes_SNG": (2, 6, 7), "confidence_S": (2,), "batch_logits_SB": (2, 3),
        "hidden_SND": (2, 6, 20),
    }  # fmt: skip


@pytest.mark.parametrize("options", [EVERYTHING, {**EVERYTHING, "head": "down_up"}, {**GPT2, "attention": "full"}])
def test_full_attention_does_not_know_the_order_of_cells(options):
    network = build(**{**options, "head": options.get("head", "absolute")})
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    batch = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    straight = network(cells(), perturbations(), batch)
    shuffled = network(cells()[:, order], perturbations(), batch[:, order])
    torch.testing.assert_close(shuffled.prediction_SNG, straight.prediction_SNG[:, order], atol=1e-5, rtol=1e-5)
    if straight.confidence_S is not None:
        torch.testing.assert_close(shuffled.confidence_S, straight.confidence_S, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("attention", "first_changes"), [("full", True), ("causal", False), ("causal_rope", False)])
def test_a_causal_network_does_not_see_later_cells(attention, first_changes):
    network = build(attention=attention, head="absolute")
    control = cells()
    changed = control.clone()
    changed[:, -1] += 1
    before, after = (network(x, perturbations()).prediction_SNG[:, 0] for x in (control, changed))
    assert torch.equal(before, after) is not first_changes


def test_with_self_only_attention_a_cell_is_predicted_as_if_alone():
    network = build(attention="self_only", head="absolute")
    together = network(cells(), perturbations()).prediction_SNG
    alone = network(cells()[:, 2:3], perturbations()).prediction_SNG
    torch.testing.assert_close(together[:, 2:3], alone)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("backbone", ["llama", "gpt2"])
def test_padding_changes_nothing_for_the_cells_that_are_there(attention, backbone):
    if backbone == "gpt2" and attention == "causal_rope":
        pytest.skip("GPT-2 has no rotary positions")
    options = EVERYTHING if backbone == "llama" else {**EVERYTHING, **GPT2, "n_kv_heads": 4}
    network = build(**{**options, "attention": attention, "head": "absolute"})
    padded = torch.cat([cells(), 9 * cells(2, 3)], dim=1)
    present = torch.arange(9).expand(2, 9) < 6
    batch = torch.tensor([[0], [2]])
    short, long = network(cells(), perturbations(), batch), network(padded, perturbations(), batch, present_SN=present)
    torch.testing.assert_close(long.prediction_SNG[:, :6], short.prediction_SNG, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(long.confidence_S, short.confidence_S, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(long.batch_logits_SB, short.batch_logits_SB, atol=1e-5, rtol=1e-5)


def test_an_untrained_delta_network_predicts_its_base():
    assert torch.equal(build()(cells(), perturbations()).prediction_SNG, cells())
    prediction = build(n_input=3)(cells(width=3), perturbations(), base_SNG=cells()).prediction_SNG
    assert torch.equal(prediction, cells())


def test_an_unseen_perturbation_shows_in_the_base_alone():
    network = build(head="delta", base_encoder=True, sees_perturbation=False)
    torch.nn.init.normal_(network.head.project.layers[-1].weight)
    one, other = perturbations(), perturbations().flip(0)
    torch.testing.assert_close(
        network(cells(), one, base_SNG=cells()).prediction_SNG, network(cells(), other, base_SNG=cells()).prediction_SNG
    )
    seeing = build(head="delta", base_encoder=True)
    torch.nn.init.normal_(seeing.head.project.layers[-1].weight)
    assert not torch.allclose(seeing(cells(), one).prediction_SNG, seeing(cells(), other).prediction_SNG)


def test_a_silent_gene_can_be_switched_on():
    network = build()
    (-network(torch.zeros(2, 6, 16), perturbations()).prediction_SNG.sum()).backward()
    gradient = network.head.project.layers[-1].bias.grad
    assert gradient is not None
    assert bool((gradient < 0).all())


@pytest.mark.parametrize("rectify", [True, False])
def test_only_a_rectified_network_is_never_negative(rectify):
    prediction = build(head="absolute", rectify=rectify)(cells(), perturbations()).prediction_SNG
    assert bool((prediction >= 0).all()) is rectify


def test_sets_do_not_influence_each_other():
    network = build(head="absolute")
    both = network(cells(), perturbations()).prediction_SNG
    torch.testing.assert_close(network(cells()[:1], perturbations()[:1]).prediction_SNG, both[:1])
    torch.testing.assert_close(network(cells(), perturbations()[:, None].expand(2, 6, 5)).prediction_SNG, both)


def test_batches_may_be_labels_or_one_hot_and_must_be_given():
    network = build(n_batches=3, head="absolute")
    labels = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 2, 1, 1, 1]])
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    first, second = (network(cells(), perturbations(), batch).prediction_SNG for batch in (labels, one_hot))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="give the technical batch"):
        network(cells(), perturbations())


def test_every_parameter_of_a_trained_network_gets_a_gradient():
    network = build(**{**EVERYTHING, "head": "down_up", "rectify": False}).train()
    output = network(cells(), perturbations(), torch.tensor([[0], [2]]))
    loss = sum(part.square().sum() for part in output if part is not None)
    loss.backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_configuration_survives_json():
    config = NetworkConfig(**EVERYTHING)
    assert NetworkConfig.from_kwargs(json.loads(json.dumps(config.to_kwargs()))) == config
    with pytest.raises(ValueError, match=r"does not know \['widht'\]"):
        NetworkConfig.from_kwargs({**SMALL, "widht": 3})


@pytest.mark.parametrize("size", SIZES)
def test_every_named_size_builds(size):
    with torch.device("meta"):
        SetTransformer(NetworkConfig(n_input=100, n_output=100, n_perturbation=10, **SIZES[size]))


def test_the_largest_size_has_the_parameters_of_the_published_network():
    config = NetworkConfig(
        **SIZES["tahoe"], n_input=18080, n_output=18080, n_perturbation=5120, n_batches=530,
        control_encoder="mlp", head="down_up",
    )  # fmt: skip
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in SetTransformer(config).parameters())
    # 424,110,132 less the dead token table of 32,000 rows.
    assert n_parameters == 424_110_132 - 32_000 * 1488


REFUSALS = {
    "a width of zero": ({"hidden": 0}, "positive integer"),
    "an unknown head": ({"head": "best"}, "head='best' is unknown"),
    "an unknown activation": ({"activation": "tanh"}, "activation='tanh'"),
    "heads that do not group": ({"n_kv_heads": 3}, "multiple"),
    "no sign of the perturbation": ({"sees_perturbation": False}, "needs base_encoder=True"),
    "no head width": ({"head_dim": None, "hidden": 22}, "not divisible"),
    "an odd rotary width": ({"attention": "causal_rope", "head_dim": 5}, "odd"),
    "grouped heads in gpt2": ({**GPT2, "n_kv_heads": 2}, "gpt2"),
    "rotary positions in gpt2": ({**GPT2, "hidden": 24, "head_dim": 6, "attention": "causal_rope"}, "rotary"),
    "a token without classes": ({"batch_token": True}, "class"),
    "classes without a token": ({"n_batch_classes": 3}, "token"),
    "negative batches": ({"n_batches": -1}, "negative"),
    "down_up across widths": ({"head": "down_up", "n_output": 8}, "must be equal"),
    "down_up of a narrow output": ({"head": "down_up", "n_input": 7, "n_output": 7}, "below 8"),
    "a dropout of one": ({"dropout": 1.0}, "below 1"),
    "confidence of a narrow network": ({"confidence_token": True, "hidden": 2}, "hidden >= 4"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=list(REFUSALS))
def test_an_impossible_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("hidden", "residual", "message"), [((), False, "empty"), ((8, 9), True, "equal width"), ((0,), False, "positive")]
)
def test_an_impossible_decoder_is_refused(hidden, residual, message):
    with pytest.raises(ValueError, match=message):
        GeneDecoderConfig(n_genes=5, hidden=hidden, residual=residual)


def test_half_precision_stays_close_to_single():
    network = build(head="absolute")
    single = network(cells(), perturbations()).prediction_SNG
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(cells(), perturbations()).prediction_SNG
    torch.testing.assert_close(half.float(), single, atol=0.05, rtol=0.1)


def test_other_attention_is_another_function_of_the_same_weights():
    network = build(head="absolute")
    other = SetTransformer(replace(network.config, attention="causal")).eval()
    other.load_state_dict(network.state_dict())
    assert not torch.allclose(
        other(cells(), perturbations()).prediction_SNG, network(cells(), perturbations()).prediction_SNG
    )


def test_parts_of_a_perturbation_are_encoded_each_and_summed_in_any_order():
    torch.manual_seed(0)
    options = {"n_input": 6, "n_output": 6, "hidden": 8, "n_layers": 1, "intermediate": 16, "n_heads": 2}
    network = SetTransformer(NetworkConfig(n_perturbation=3, n_perturbation_parts=2, **options)).eval()
    assert network.config.perturbation_width == 8
    one, other, nothing = torch.randn(3), torch.randn(3), torch.zeros(4)
    mark = torch.ones(1)
    pair, turned, single = (
        network._encode_perturbation(torch.cat(parts)[None])[:, 0]
        for parts in ((one, mark, other, mark), (other, mark, one, mark), (one, mark, nothing))
    )
    encode = network.perturbation_encoder
    torch.testing.assert_close(pair[0], encode(one) + encode(other))
    torch.testing.assert_close(pair, turned)
    torch.testing.assert_close(single[0], encode(one))


WIDE = {**SMALL, "head_dim": 5, "n_output": 83, "n_input": 83}


def in_16_bits(network, device):
    """Prediction and gradient of the control encoder, with products in bfloat16."""
    control = cells().to(device)[..., :1].expand(-1, -1, 83) * torch.linspace(0.1, 2, 83, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        prediction = network.to(device)(control, perturbations().to(device)).prediction_SNG
    prediction.float().square().sum().backward()
    return prediction.float().cpu(), {n: p.grad.cpu() for n, p in network.named_parameters() if p.grad is not None}


def assert_same_in_16_bits(found, expected):
    assert (found[0] - expected[0]).norm() < 0.02 * expected[0].norm()
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() < 0.05 * gradient.norm() + 1e-3, name


@pytest.mark.parametrize("head", ["down_up", "delta", "absolute"])
def test_what_a_gpu_computes_in_16_bits_is_the_same_network(head, monkeypatch):
    expected = in_16_bits(build(**{**WIDE, "head": head}), "cpu")
    monkeypatch.setattr("scvi_tahoe.nn._networks.runs_in_16_bits", lambda x: True)
    assert_same_in_16_bits(in_16_bits(build(**{**WIDE, "head": head}), "cpu"), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("head", ["down_up", "delta", "absolute"])
def test_on_a_gpu_products_of_16_bits_give_the_same_network(head):
    expected = in_16_bits(build(**{**WIDE, "head": head}), "cpu")
    assert_same_in_16_bits(in_16_bits(build(**{**WIDE, "head": head}), "cuda"), expected)


def test_a_gene_decoder_without_widths_is_refused():
    with pytest.raises(ValueError, match=r"gene_decoder lacks \['hidden'\]; hidden is a list of widths"):
        NetworkConfig.from_kwargs({"n_input": 4, "n_output": 4, "n_perturbation": 4, "gene_decoder": {"n_genes": 5}})
