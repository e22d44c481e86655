"""Weights read from Arc's format compute what the peer computes: golden numbers, and a naive re-computation."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scvi_tahoe.pretrained import read_arc_folder

BACKBONE = "transformer_backbone"
LIMIT = 1e-5


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def verify_outputs(network, inputs, outputs):
    with torch.inference_mode():
        found = network(inputs["ctrl_cell_emb"], inputs["pert_emb"], inputs["batch"])
        once_a_set = network(inputs["ctrl_cell_emb"], inputs["pert_emb"][:, 0], F.one_hot(inputs["batch"], 3).float())
    names = {"preds": "prediction_SNG", "pert_cell_counts_preds": "genes_SNG", "confidence_pred": "confidence_S"}
    for name, expected in outputs.items():
        assert relative_error(getattr(found, names[name]), expected) < LIMIT
        assert relative_error(getattr(once_a_set, names[name]), expected) < LIMIT


@pytest.mark.parametrize("case", ["padded", "ragged"])
def test_golden_weights_reproduce_the_numbers_of_the_peer(each_golden, case):
    network = read_arc_folder(each_golden.folder.write()).build()
    verify_outputs(network, each_golden.inputs(case), each_golden.outputs(case))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_golden_weights_reproduce_the_peer_on_a_gpu(each_golden):
    network = read_arc_folder(each_golden.folder.write()).build().cuda()
    inputs = {name: tensor.cuda() for name, tensor in each_golden.inputs("padded").items()}
    verify_outputs(network, inputs, {name: x.cuda() for name, x in each_golden.outputs("padded").items()})


@pytest.mark.skipif("SCVI_TAHOE_GOLDEN" not in os.environ, reason="SCVI_TAHOE_GOLDEN names no folder")
def test_the_peers_own_folders_reproduce_its_numbers():
    folders = sorted(path for path in Path(os.environ["SCVI_TAHOE_GOLDEN"]).iterdir() if path.is_dir())
    assert folders
    for folder in folders:
        network = read_arc_folder(folder).build()
        arrays = np.load(folder / "golden.npz")
        for case, n_sets in (("padded", 2), ("ragged", 1)):
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(case)}
            inputs = {k.split(".")[-1]: t.reshape(n_sets, -1, *t.shape[1:]) for k, t in tensors.items() if ".in." in k}
            outputs = {
                k.split(".")[-1]: t.reshape(n_sets, -1, *t.shape[1:]) for k, t in tensors.items() if ".out." in k
            }
            if "confidence_pred" in outputs:
                outputs["confidence_pred"] = outputs["confidence_pred"].reshape(n_sets)
            verify_outputs(network, inputs, outputs)


COMBINATIONS = {
    "grouped heads, mlp control": {},
    "one key/value head": {"n_kv": 1},
    "causal with rotary positions": {"flag": False},
    "each cell sees itself": {"mask_attn": True},
    "linear control, absolute": {"mlp": False, "residual": False},
    "all genes": {"space": "all", "embed_key": None},
    "all genes, absolute": {"space": "all", "embed_key": None, "residual": False},
    "embedding to genes": {"space": "all", "embed_key": "X_state", "decoder": "plain"},
    "embedding to variable genes, residual decoder": {"embed_key": "X_state", "decoder": "residual"},
    "variable genes to all": {"space": "all", "decoder": "plain"},
    "embedding only": {"space": "embedding", "embed_key": "X_state"},
    "batches and confidence": {"batch_encoder": True, "confidence": True},
    "both tokens, rotary": {"batch_token": True, "confidence": True, "flag": False},
    "single layers": {"n_encoder": 1, "n_decoder": 1, "activation": "relu"},
    "heads that do not divide the width": {"hidden": 22, "n_kv": 4, "confidence": True},
    "gpt2": {"backbone": "gpt2", "batch_encoder": True},
    "gpt2 with tokens": {"backbone": "gpt2", "batch_token": True, "confidence": True, "mlp": False},
    "gpt2, each cell sees itself": {"backbone": "gpt2", "mask_attn": True},
}


@pytest.mark.parametrize("options", COMBINATIONS.values(), ids=list(COMBINATIONS))
def test_any_combination_computes_the_published_formulas(options, arc):
    folder = arc(**options)
    network = read_arc_folder(folder.write()).build()
    rng = torch.Generator().manual_seed(1)
    control, batch = torch.rand(2, 7, 24, generator=rng), torch.tensor([[0] * 7, [2] * 7])
    perturbation = torch.eye(5)[[1, 3]]
    expected = naive_forward(folder.state, folder.hyper, options, control, perturbation, batch)
    with torch.inference_mode():
        found = network(control, perturbation, batch)
    for name, value in expected.items():
        assert relative_error(getattr(found, name), value) < LIMIT


# A slow, literal forward pass on tensors in the peer's layout, one set and one head at a time.


def naive_forward(w, hyper, options, control, pert, batch):
    sets = [_one_set(w, hyper, options, control[s], pert[s], batch[s]) for s in range(len(control))]
    return {key: torch.stack([one[key] for one in sets]) for key in sets[0]}


def _one_set(w, hyper, options, x, u, batch):
    act = {"gelu": F.gelu, "relu": F.relu}[hyper["activation"]]
    c = (
        F.linear(x, w["basal_encoder.weight"], w["basal_encoder.bias"])
        if "basal_encoder.weight" in w
        else _mlp(w, "basal_encoder", x, act)
    )
    tokens = c + _mlp(w, "pert_encoder", u, act)
    if "batch_encoder.weight" in w:
        tokens = tokens + w["batch_encoder.weight"][batch]
    n_before = int("batch_token" in w)
    if n_before:
        tokens = torch.cat([w["batch_token"][0], tokens])
    if "confidence_token.confidence_token" in w:
        tokens = torch.cat([tokens, w["confidence_token.confidence_token"][0]])
    out = (_llama if f"{BACKBONE}.norm.weight" in w else _gpt2)(w, hyper, tokens)
    t = out[n_before : n_before + len(x)]
    result = {"hidden_SND": t}

    if hyper["predict_residual"] and hyper["output_space"] == "all":
        y = _mlp(w, "project_out", t, act) + x
        y = F.gelu(F.linear(y, w["final_down_then_up.0.weight"], w["final_down_then_up.0.bias"]))
        y = F.linear(y, w["final_down_then_up.2.weight"], w["final_down_then_up.2.bias"])
    else:
        y = _mlp(w, "project_out", t + c if hyper["predict_residual"] else t, act)
    decoder = options.get("decoder")
    if hyper["embed_key"] in (None, "X_hvg") or not decoder:
        y = F.relu(y)
    result["prediction_SNG"] = y
    if decoder:
        result["genes_SNG"] = _decoder(w, y, decoder)
    if "confidence_token.confidence_token" in w:
        result["confidence_S"] = _confidence(w, out[-1])
    if n_before:
        result["batch_logits_SB"] = F.linear(out[0], w["batch_classifier.0.weight"], w["batch_classifier.0.bias"])
    return result


def _mlp(w, name, x, act):
    indices = sorted(int(key.split(".")[1]) for key in w if key.startswith(f"{name}.") and key.endswith("weight"))
    for i in indices:
        x = F.linear(x, w[f"{name}.{i}.weight"], w[f"{name}.{i}.bias"])
        x = x if i == indices[-1] else act(x)
    return x


def _attend(q, k, v, kind):
    scores = q @ k.T / math.sqrt(q.shape[-1])
    n = len(scores)
    allowed = {"full": torch.ones(n, n), "causal": torch.ones(n, n).tril(), "self": torch.eye(n)}[kind]
    return torch.softmax(scores.masked_fill(allowed == 0, -torch.inf), -1) @ v


def _rms(x, weight):
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def _rope(x):
    n, width = x.shape
    out = torch.empty_like(x)
    for p in range(n):
        for j in range(width // 2):
            angle = p / 10_000 ** (2 * j / width)
            a, b = x[p, j], x[p, j + width // 2]
            out[p, j] = a * math.cos(angle) - b * math.sin(angle)
            out[p, j + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def _llama(w, hyper, x):
    settings = hyper["transformer_backbone_kwargs"]
    n_heads, n_kv, width = settings["num_attention_heads"], settings["num_key_value_heads"], settings["head_dim"]
    rotate = not settings["bidirectional_attention"]
    kind = "self" if hyper["mask_attn"] else "causal" if rotate else "full"
    for i in range(2):
        p = f"{BACKBONE}.layers.{i}"
        h = _rms(x, w[f"{p}.input_layernorm.weight"])
        q, k, v = (h @ w[f"{p}.self_attn.{n}_proj.weight"].T for n in "qkv")
        heads = []
        for head in range(n_heads):
            g = head // (n_heads // n_kv)
            qh, kh = q[:, head * width : (head + 1) * width], k[:, g * width : (g + 1) * width]
            qh, kh = (_rope(qh), _rope(kh)) if rotate else (qh, kh)
            heads.append(_attend(qh, kh, v[:, g * width : (g + 1) * width], kind))
        x = x + torch.cat(heads, -1) @ w[f"{p}.self_attn.o_proj.weight"].T
        h = _rms(x, w[f"{p}.post_attention_layernorm.weight"])
        gate = h @ w[f"{p}.mlp.gate_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (h @ w[f"{p}.mlp.up_proj.weight"].T)) @ w[f"{p}.mlp.down_proj.weight"].T
    return _rms(x, w[f"{BACKBONE}.norm.weight"])


def _gpt2(w, hyper, x):
    n_heads = hyper["transformer_backbone_kwargs"]["n_head"]
    kind = "self" if hyper["mask_attn"] else "causal"

    def norm(name, h):
        return F.layer_norm(h, h.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    for i in range(2):
        p = f"{BACKBONE}.h.{i}"
        qkv = norm(f"{p}.ln_1", x) @ w[f"{p}.attn.c_attn.weight"] + w[f"{p}.attn.c_attn.bias"]
        q, k, v = (part.chunk(n_heads, -1) for part in qkv.chunk(3, -1))
        heads = torch.cat([_attend(a, b, c, kind) for a, b, c in zip(q, k, v, strict=True)], -1)
        x = x + heads @ w[f"{p}.attn.c_proj.weight"] + w[f"{p}.attn.c_proj.bias"]
        h = norm(f"{p}.ln_2", x) @ w[f"{p}.mlp.c_fc.weight"] + w[f"{p}.mlp.c_fc.bias"]
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ w[f"{p}.mlp.c_proj.weight"] + w[f"{p}.mlp.c_proj.bias"]
    return norm(f"{BACKBONE}.ln_f", x)


def _block(w, linear, norm, x):
    x = F.linear(x, w[f"{linear}.weight"], w[f"{linear}.bias"])
    return F.gelu(F.layer_norm(x, x.shape[-1:], w[f"{norm}.weight"], w[f"{norm}.bias"], 1e-5))


def _decoder(w, x, kind):
    if kind == "plain":
        for k in range(3):
            x = _block(w, f"gene_decoder.decoder.{4 * k}", f"gene_decoder.decoder.{4 * k + 1}", x)
        return F.relu(F.linear(x, w["gene_decoder.decoder.12.weight"], w["gene_decoder.decoder.12.bias"]))
    first = _block(w, "gene_decoder.blocks.0.0", "gene_decoder.blocks.0.1", x)
    second = _block(w, "gene_decoder.blocks.1.0", "gene_decoder.blocks.1.1", first) + first
    third = _block(w, "gene_decoder.blocks.2.0", "gene_decoder.blocks.2.1", second)
    return F.relu(F.linear(third, w["gene_decoder.final_layer.0.weight"], w["gene_decoder.final_layer.0.bias"]))


def _confidence(w, k):
    p = "confidence_token.confidence_projection"
    k = _block(w, f"{p}.0", f"{p}.1", k)
    k = _block(w, f"{p}.4", f"{p}.5", k)
    return F.relu(F.linear(k, w[f"{p}.8.weight"], w[f"{p}.8.bias"]))[0]
