"""Folders in Arc's format, written here from arrays: the golden ones, and made-up ones of any layout."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scvi_tahoe.pretrained import UnsafeFileError, read_arc_folder

# tests are imported by their path, so a file beside them is not found by itself
sys.path.insert(0, str(Path(__file__).parent))


GOLDEN = Path(__file__).parents[1] / "golden"
BACKBONE = "transformer_backbone"


@dataclass
class Folder:
    """The content of a model folder, to be written in one of the layouts that exist."""

    state: dict[str, Tensor]
    hyper: dict[str, Any]
    perturbations: dict[str, Tensor]
    batches: dict[str, Tensor] = field(default_factory=dict)
    contexts: dict[str, Tensor] = field(default_factory=dict)
    path: Path | None = None

    def write(self, path=None, *, checkpoint="checkpoints/final.ckpt", maps="torch", **top):
        """Write the folder; ``maps`` is ``'torch'`` (newer versions) or ``'pkl'`` (older ones)."""
        path = path or self.path
        path.mkdir(parents=True, exist_ok=True)
        content = {
            "epoch": 0,
            "global_step": 1,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": self.state,
            "optimizer_states": [{"state": {i: {"exp_avg": torch.ones(5)} for i in range(3)}, "param_groups": []}],
            "hyper_parameters": self.hyper,
            **top,
        }
        (path / checkpoint).parent.mkdir(exist_ok=True)
        torch.save({k: v for k, v in content.items() if v is not None}, path / checkpoint)
        (path / "var_dims.pkl").write_bytes(pickle.dumps({"gene_names": self.hyper.get("gene_names")}))
        torch.save(self.perturbations, path / "pert_onehot_map.pt")
        for stem, content in (("batch_onehot_map", self.batches), ("cell_type_onehot_map", self.contexts)):
            if content and maps == "torch":
                torch.save(content, path / f"{stem}.torch")
            elif content:
                (path / f"{stem}.pkl").write_bytes(pickle.dumps(content))
        return path


def one_hot(names):
    return dict(zip(names, torch.eye(len(names)), strict=True))


@dataclass
class Golden:
    """Numbers of the peer, by name."""

    folder: Folder
    arrays: dict[str, np.ndarray]

    def inputs(self, case):
        return {key.split("/")[-1]: self._sets(case, key) for key in self.arrays if key.startswith(f"{case}/in/")}

    def outputs(self, case):
        return {key.split("/")[-1]: self._sets(case, key) for key in self.arrays if key.startswith(f"{case}/out/")}

    def _sets(self, case, key):
        n_sets = 2 if case == "padded" else 1
        array = torch.from_numpy(self.arrays[key])
        return array.reshape(n_sets, -1, *array.shape[1:]) if "confidence" not in key else array.reshape(n_sets)


def load_golden(name):
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    state = {
        key.removeprefix("weights/"): torch.from_numpy(x) for key, x in arrays.items() if key.startswith("weights/")
    }
    infix = "base_model.model." if facts["hyper_parameters"].get("lora") else ""
    state[f"{BACKBONE}.{infix}embed_tokens.weight"] = torch.zeros(256, facts["hyper_parameters"]["hidden_dim"])
    perturbations = dict(zip(facts["perturbations"], torch.from_numpy(arrays["perturbations"]), strict=True))
    folder = Folder(
        state, facts["hyper_parameters"], perturbations, one_hot(facts["batches"]), one_hot(facts["contexts"])
    )
    return Golden(folder, arrays)


GOLDEN_NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


@pytest.fixture
def golden(tmp_path):
    """Golden numbers by name, whose folder is written to ``folder`` unless said otherwise."""

    def load(name):
        loaded = load_golden(name)
        loaded.folder.path = tmp_path / "folder"
        return loaded

    return load


@pytest.fixture(params=GOLDEN_NAMES)
def each_golden(request, golden):
    return golden(request.param)


@pytest.fixture
def golden_folder(golden, tmp_path):
    return lambda name="expr_all_feat", **layout: golden(name).folder.write(tmp_path / name, **layout)


@dataclass(frozen=True, kw_only=True)
class ArcOptions:
    """A made-up ST model. Widths are odd on purpose: heads times head width differs from the hidden width."""

    backbone: str = "llama"
    flag: bool | None = True
    n_in: int = 24
    n_out: int | None = None
    n_pert: int = 5
    hidden: int = 20
    n_layers: int = 2
    intermediate: int = 28
    n_heads: int = 4
    n_kv: int = 2
    head_dim: int = 6
    n_encoder: int = 2
    n_decoder: int = 3
    mlp: bool = True
    residual: bool = True
    space: str = "gene"
    embed_key: str | None = "X_hvg"
    batch_encoder: bool = False
    batch_token: bool = False
    confidence: bool = False
    decoder: str | None = None
    mask_attn: bool = False
    activation: str = "gelu"


class _Draw:
    """Random parts of a state dict, under the names the peer gives them."""

    def __init__(self):
        self.rng = torch.Generator().manual_seed(0)
        self.state = {}

    def matrix(self, *shape):
        return torch.randn(shape, generator=self.rng) / math.sqrt(shape[-1])

    def weight(self, name, *shape, scale=1.0, offset=0.0):
        self.state[name] = offset + scale * self.matrix(*shape)

    def linear(self, name, n_out, n_in):
        self.weight(f"{name}.weight", n_out, n_in)
        self.weight(f"{name}.bias", n_out)

    def norm(self, name, n):
        self.weight(f"{name}.weight", n, offset=1.0)
        self.weight(f"{name}.bias", n)


def make_arc(**options):
    o, draw = ArcOptions(**options), _Draw()
    _draw_encoders(draw, o)
    _draw_head(draw, o)
    _draw_tokens(draw, o)
    if o.decoder:
        _draw_decoder(draw, o)
    for i in range(o.n_layers):
        (_draw_llama if o.backbone == "llama" else _draw_gpt2)(draw, o, i)
    batches = one_hot(["a", "b", "c"]) if o.batch_encoder or o.batch_token else {}
    perturbations = one_hot(["control", *(f"P{i}" for i in range(o.n_pert - 1))])
    return Folder(draw.state, _hyper(draw, o), perturbations, batches)


def _draw_encoders(draw, o):
    for i in range(o.n_encoder):
        draw.linear(f"pert_encoder.{3 * i}", o.hidden, o.n_pert if i == 0 else o.hidden)
        if o.mlp:
            draw.linear(f"basal_encoder.{3 * i}", o.hidden, o.n_in if i == 0 else o.hidden)
    if not o.mlp:
        draw.linear("basal_encoder", o.hidden, o.n_in)
    if o.batch_encoder:
        draw.weight("batch_encoder.weight", 3, o.hidden)


def _draw_head(draw, o):
    n_out = o.n_out or o.n_in
    for i in range(o.n_decoder):
        draw.linear(f"project_out.{3 * i}", n_out if i == o.n_decoder - 1 else o.hidden, o.hidden)
    if o.space == "all":
        draw.linear("final_down_then_up.0", n_out // 8, n_out)
        draw.linear("final_down_then_up.2", n_out, n_out // 8)


def _draw_tokens(draw, o):
    d = o.hidden
    if o.batch_token:
        draw.weight("batch_token", 1, 1, d)
        draw.linear("batch_classifier.0", 3, d)
    if o.confidence:
        p = "confidence_token.confidence_projection"
        draw.weight("confidence_token.confidence_token", 1, 1, d)
        draw.linear(f"{p}.0", d // 2, d)
        draw.norm(f"{p}.1", d // 2)
        draw.linear(f"{p}.4", d // 4, d // 2)
        draw.norm(f"{p}.5", d // 4)
        draw.linear(f"{p}.8", 1, d // 4)
        draw.state[f"{p}.8.bias"] += 3.0


def _draw_decoder(draw, o):
    widths = [o.n_out or o.n_in, 16, 16, 16]
    for k in range(3):
        names = (f"blocks.{k}.{i}" if o.decoder == "residual" else f"decoder.{4 * k + i}" for i in range(2))
        linear, norm = (f"gene_decoder.{name}" for name in names)
        draw.linear(linear, widths[k + 1], widths[k])
        draw.norm(norm, widths[k + 1])
    draw.linear("gene_decoder.final_layer.0" if o.decoder == "residual" else "gene_decoder.decoder.12", 30, 16)


def _draw_llama(draw, o, i):
    p, d = f"{BACKBONE}.layers.{i}", o.hidden
    queries, keys = o.n_heads * o.head_dim, o.n_kv * o.head_dim
    draw.weight(f"{p}.self_attn.q_proj.weight", queries, d, scale=2.0)
    draw.weight(f"{p}.self_attn.k_proj.weight", keys, d, scale=2.0)
    draw.weight(f"{p}.self_attn.v_proj.weight", keys, d)
    draw.weight(f"{p}.self_attn.o_proj.weight", d, queries)
    draw.weight(f"{p}.mlp.gate_proj.weight", o.intermediate, d)
    draw.weight(f"{p}.mlp.up_proj.weight", o.intermediate, d)
    draw.weight(f"{p}.mlp.down_proj.weight", d, o.intermediate)
    draw.weight(f"{p}.input_layernorm.weight", d, offset=1.0)
    draw.weight(f"{p}.post_attention_layernorm.weight", d, offset=1.0)


def _draw_gpt2(draw, o, i):
    p, d = f"{BACKBONE}.h.{i}", o.hidden
    draw.norm(f"{p}.ln_1", d)
    draw.norm(f"{p}.ln_2", d)
    shapes = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    for name, (n_in, n_out) in shapes.items():
        draw.weight(f"{p}.{name}.weight", n_in, n_out)
        draw.weight(f"{p}.{name}.bias", n_out)


def _hyper(draw, o):
    """Return the hyper-parameters, and add the backbone's last norm and its tables of zeros."""
    settings = {"n_head": o.n_heads}
    if o.backbone == "llama":
        draw.weight(f"{BACKBONE}.norm.weight", o.hidden, offset=1.0)
        draw.state[f"{BACKBONE}.embed_tokens.weight"] = torch.zeros(50, o.hidden)
        settings = {"num_attention_heads": o.n_heads, "num_key_value_heads": o.n_kv, "head_dim": o.head_dim}
        settings |= {} if o.flag is None else {"bidirectional_attention": o.flag}
    else:
        draw.norm(f"{BACKBONE}.ln_f", o.hidden)
        draw.state[f"{BACKBONE}.wte.weight"] = torch.zeros(50, o.hidden)
        draw.state[f"{BACKBONE}.wpe.weight"] = torch.zeros(16, o.hidden)
    key, n_genes = "llama" if o.backbone == "llama" else "GPT2", 30 if o.decoder else o.n_out or o.n_in
    return {
        "transformer_backbone_key": key, "transformer_backbone_kwargs": settings, "cell_set_len": 8,
        "output_space": o.space, "embed_key": o.embed_key, "predict_residual": o.residual, "mask_attn": o.mask_attn,
        "activation": o.activation, "control_pert": "control", "lr": 1e-4,
        "gene_names": [f"G{i}" for i in range(n_genes)],
    }  # fmt: skip


@pytest.fixture
def arc(tmp_path):
    """A made-up model by its options, which is written to ``folder`` unless said otherwise."""

    def make(**options):
        folder = make_arc(**options)
        folder.path = tmp_path / "folder"
        return folder

    return make


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def payload(tmp_path):
    return Payload(tmp_path / "executed")


@pytest.fixture
def refused(tmp_path):
    """Reading a folder ends with one printable line, and nothing in it is run."""

    def refused(folder, match, read=read_arc_folder):
        with pytest.raises(UnsafeFileError, match=match) as caught:
            read(folder)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 700
        assert not (tmp_path / "executed").exists()

    return refused


def _hub_environment(address, home):
    """What tells the hub's client where the hub is, and keeps it away from the user's own settings."""
    disabled = {f"HF_HUB_DISABLE_{what}": "1" for what in ("TELEMETRY", "XET", "PROGRESS_BARS")}
    return {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": "hf_none", **disabled}


@pytest.fixture
def use_hub(tmp_path, monkeypatch):
    """Point the hub's client to another address, in this process.

    The client reads the address when it is imported, so it is imported anew, and the one there was is put back later.
    """
    pytest.importorskip("huggingface_hub")
    before = _take_out("huggingface_hub")

    def use(address):
        _take_out("huggingface_hub")
        for key in [key for key in os.environ if "proxy" in key.lower() or key == "SCVI_TAHOE_ACCEPT_LICENSE"]:
            monkeypatch.delenv(key)
        for key, value in _hub_environment(address, tmp_path / "hf-home").items():
            monkeypatch.setenv(key, value)

    yield use
    _take_out("huggingface_hub")
    sys.modules.update(before)


def _take_out(package):
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def run_with_hub(tmp_path):
    """Run a script whose hub is at another address; returns what it prints."""

    def run(address, script, *arguments):
        # scvi.hub keeps the client it was imported with, so it needs a process of its own.
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        environment |= _hub_environment(address, tmp_path / "hf-home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
        environment.pop("SCVI_TAHOE_ACCEPT_LICENSE", None)
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
