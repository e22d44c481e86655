"""A State Embedding model as it lies in a folder: its network, the protein embeddings of its genes, its origin."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import (
    UnsafeFileError,
    member,
    parse_yaml,
    read_torch_around_classes,
    read_yaml,
    reading,
    verify_finite,
    verify_tensor,
)
from scvi_tahoe.nn import CellEncoder, CellEncoderConfig
from scvi_tahoe.pretrained._arc_files import vectors_of
from scvi_tahoe.pretrained._hub import resolve_source
from scvi_tahoe.pretrained._licence import (
    is_arcs,
    is_permissive,
    licence_text,
    mention_licence,
    show_licence,
    stated_licence,
)
from scvi_tahoe.pretrained._pretrained_model import Provenance
from scvi_tahoe.pretrained._tables import read_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from torch import Tensor

_WEIGHTS, _PROTEINS, _CONFIG = "model.safetensors", "protein_embeddings.pt", "config.yaml"
_LIMIT = 50_000_000_000
_MAX_LAYERS, _MOST = 1_000, 100_000
#: Names of the folder, or their beginnings, and ours.
_NAMES = {
    "cls_token": "cell_token",
    "dataset_token": "dataset_token",
    "encoder.": "gene_encoder.",
    "count_encoder.": "bin_weights.",
    "bin_encoder.weight": "bins",
    "decoder.0.intermediate_dense.": "head.0.wide.0.",
    "decoder.0.dense.": "head.0.wide.2.",
    "decoder.0.layer_norm.": "head.0.norm.",
    "decoder.1.": "head.1.",
    "dataset_embedder.": "dataset_readout.",
}
_IN_BLOCK = {
    "qkv_proj": "query_key_value",
    "out_proj": "attended",
    "norm1": "attention_norm",
    "linear1": "feed_forward.0",
    "linear2": "feed_forward.2",
    "norm2": "norm",
}
_BLOCK = re.compile(rf"transformer_encoder\.layers\.(\d{{1,4}})\.({'|'.join(_IN_BLOCK)})\.(weight|bias)")
#: Parts of a folder that embedding cells does not need: copies, the classifier of training, the gene decoder.
_UNUSED = ("pe_embedding.", "gene_embedding_layer.", "dataset_encoder.", "binary_decoder.")
_TWIN = "gene_embedding_layer."


@dataclass(frozen=True, kw_only=True, eq=False)
class StateEmbedding:
    """A State Embedding model: what :func:`embed_cells` runs."""

    #: The network; it stays on the device it last ran on.
    network: CellEncoder = field(repr=False)
    #: Protein embedding of every gene that the model can read, by name, ``[E]``.
    proteins: Mapping[str, np.ndarray] = field(repr=False)
    #: Slots of a cell, that of its own token included.
    n_slots: int
    #: Which of a cell's genes, in the order of the data, lends its count to the cell's own token.
    lender: int
    #: Name of the folder or on the hub, commit of the hub, file of the weights.
    source: str
    revision: str | None
    checkpoint: str
    #: What is known of the licence of the weights, which is that of the embeddings, too.
    licence: str


@checked()
def read_state_embedding(
    source: str | Path,
    checkpoint: str | None = None,
    *,
    protein_embeddings: str | Path | None = None,
    revision: str | None = None,
    accept_license: bool | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> StateEmbedding:
    """Return a State Embedding model (SE-600M, SE-100M) from a folder, local or on the hub.

    It reads ``model.safetensors``, ``config.yaml`` and ``protein_embeddings.pt``, and nothing in them is executed. Of a
    Lightning checkpoint (``*.ckpt``), as Arc's program writes it, tensors and numbers are read; the objects of that
    program in it are left out. Prefer safetensors: the published checkpoints are four times as large.

    Parameters
    ----------
    source
        An existing folder, or a name on the Hugging Face hub, ``'owner/name'``.
    checkpoint
        File of weights in the folder, ``*.safetensors`` or ``*.ckpt``. If None, ``model.safetensors``, else the only
        other file of that kind, else the only checkpoint.
    protein_embeddings
        File with the protein embeddings of the genes, in any format of :func:`~scvi_tahoe.read_embedding_table`. If
        None, ``protein_embeddings.pt`` of the folder, or the table in the checkpoint. The two published models have
        tables of their own.
    revision, accept_license, cache_dir, offline
        See :func:`read_pretrained`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it lacks the weights or the protein embeddings.
    LicenceNotAcceptedError
        If the licence of a download was not accepted.
    UnsafeFileError
        If a file is damaged or forged, or tensors are missing or unknown. It is a ``ValueError``.
    """
    wanted = checkpoint or _WEIGHTS
    place = resolve_source(
        source, revision=revision, accept_license=accept_license, cache_dir=cache_dir, offline=offline,
        files=(wanted, _CONFIG, *([] if protein_embeddings else [_PROTEINS]), "README.md", "LICENSE*", "MODEL_*"),
    )  # fmt: skip
    folder = place.folder
    path = _weights_file(folder, checkpoint)
    stated = stated_licence(folder)
    origin = Provenance(
        source=place.name, revision=place.revision, checkpoint=path.name, licence=stated,
        non_commercial=is_arcs(place.name) or not is_permissive(stated),
    )  # fmt: skip
    config = read_yaml(member(folder, _CONFIG)) if (folder / _CONFIG).exists() else {}
    with _opened(path) as weights:
        settings = _settings(config if weights.config is None else weights.config, weights.n_heads)
        network = _network(weights, n_heads=settings["n_heads"])
    table = folder / _PROTEINS if protein_embeddings is None else Path(protein_embeddings)
    if protein_embeddings is None and weights.proteins and not table.exists():
        proteins = vectors_of(path.name, weights.proteins)
    else:
        table = _protein_file(folder) if protein_embeddings is None else table
        proteins = read_vectors(table)
    width = network.config.protein_width
    if wrong := next((name for name, vector in proteins.items() if len(vector) != width), None):
        raise ValueError(
            f"{table.name} has vectors of width {len(proteins[wrong])} (e.g. {wrong!r}), and {path.name} takes "
            f"{width}: it is the table of another model. Use the file that lies in the folder of the weights."
        )
    if place.revision is None:
        mention_licence(origin, accept_license)
    else:
        show_licence(origin)
    return StateEmbedding(
        network=network, proteins=proteins, n_slots=settings["n_slots"], lender=settings["lender"], source=place.name,
        revision=place.revision, checkpoint=path.name, licence=licence_text(origin),
    )  # fmt: skip


def _weights_file(folder: Path, checkpoint: str | None) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; a folder of a State Embedding model holds {_WEIGHTS}.")
    if (folder / "var_dims.pkl").exists():
        raise FileNotFoundError(
            f"{folder} is a State Transition model, which TahoeST.from_pretrained reads; a State Embedding model is "
            "needed."
        )
    kinds = [sorted(path.name for path in folder.glob(f"*{ending}")) for ending in (".safetensors", ".ckpt")]
    known = [*kinds[0], *kinds[1]]
    candidates = kinds[0] or kinds[1]
    name = checkpoint or (_WEIGHTS if len(candidates) != 1 else candidates[0])
    if name not in known:
        have = f"it has {known}; choose one with checkpoint=" if known else "it has neither *.safetensors nor *.ckpt"
        raise FileNotFoundError(f"{folder} has no {name}: {have}.")
    return member(folder, name)


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """A file of weights, open, and what else it says."""

    shapes: Mapping[str, tuple[int, ...]]  #: by the name of the tensor in the file
    read: Callable[[str], Any]
    n_heads: object = None
    config: Mapping[str, Any] | None = None
    proteins: Any = None


@contextmanager
def _opened(path: Path) -> Iterator[_Weights]:
    from safetensors import safe_open

    if path.suffix == ".ckpt":
        keys = ("state_dict", "hyper_parameters", "cfg_yaml", "protein_embeds_dict")
        content = read_torch_around_classes(path, keys, limit=_LIMIT)
        with reading(path, _LIMIT):
            state, said = content["state_dict"], content.get("hyper_parameters", {})
            text = content.get("cfg_yaml")
            yield _Weights(
                shapes={str(name): tuple(tensor.shape) for name, tensor in state.items()}, read=state.__getitem__,
                n_heads=said.get("nhead"), config=parse_yaml(text) if isinstance(text, str) else None,
                proteins=content.get("protein_embeds_dict"),
            )  # fmt: skip
        return
    with reading(path, _LIMIT), safe_open(path, framework="pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
        yield _Weights(shapes=shapes, read=stored.get_tensor)


def _protein_file(folder: Path) -> Path:
    with suppress(FileNotFoundError):
        return member(folder, _PROTEINS)
    raise FileNotFoundError(
        f"{folder} has no {_PROTEINS}, without which no gene can be read; download it from the repository of the "
        "weights into the folder, or give protein_embeddings= (--protein-embeddings)."
    )


def _settings(config: Mapping[str, Any], n_heads: object) -> dict[str, int]:
    """Return what the shapes of the tensors do not say: slots, heads, and the lender of the cell's count."""
    settings = {}
    for name, section, key, default, least in (
        ("n_slots", "dataset", "pad_length", 2048, 2),
        ("lender", "dataset", "cls_token_idx", 3, 0),
        ("n_heads", "model", "nhead", 16, 1),
    ):
        part = config.get(section)
        value = part.get(key, default) if isinstance(part, dict) else default
        if name == "n_heads" and n_heads is not None:
            value = n_heads
        if type(value) is not int or not least <= value <= _MOST:
            raise UnsafeFileError(f"its configuration has {section}.{key}: {str(value)[:40]!r}, which cannot be.")
        settings[name] = value
    return settings


def _network(weights: _Weights, *, n_heads: int) -> CellEncoder:
    names = {name.replace("_orig_mod.", ""): name for name in weights.shapes}
    ours = {name: our_name(name) for name in names if not name.startswith(_UNUSED)}
    shapes = {name: weights.shapes[names[name]] for name in names}
    config = _config(shapes, n_heads)
    with torch.device("meta"):
        network = CellEncoder(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {our: shapes[name] for name, our in ours.items() if our is not None}
    unknown = sorted(name for name, our in ours.items() if our is None)
    if unknown or found != wanted:
        wrong = sorted(name for name in wanted if found.get(name) != wanted[name])
        raise UnsafeFileError(
            f"it holds no State Embedding model: {len(unknown)} tensors are unknown {unknown[:2]}, {len(wrong)} are "
            f"missing or of another shape {wrong[:2]}."
        )
    state = {str(our): _tensor(weights, names[name]) for name, our in ours.items()}
    for name in names:
        ours_of_twin = name.replace(_TWIN, "gene_encoder.")
        if name.startswith(_TWIN) and not torch.equal(_tensor(weights, names[name]), state[ours_of_twin]):
            raise UnsafeFileError(f"{name} differs from its copy under another name.")
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def our_name(name: str) -> str | None:
    """Return our name of a tensor that embedding cells needs, or None if it is unknown."""
    if match := _BLOCK.fullmatch(name):
        return f"blocks.{int(match[1])}.{_IN_BLOCK[match[2]]}.{match[3]}"
    theirs = next((theirs for theirs in _NAMES if name.startswith(theirs)), None)
    return None if theirs is None else _NAMES[theirs] + name.removeprefix(theirs)


def _config(shapes: Mapping[str, tuple[int, ...]], n_heads: int) -> CellEncoderConfig:
    layers = [int(match[1]) for name in shapes if (match := _BLOCK.fullmatch(name))]
    if not layers or max(layers) >= _MAX_LAYERS:
        raise UnsafeFileError("it holds no State Embedding model: it has no plausible number of layers.")
    try:
        hidden, protein_width = shapes["encoder.0.weight"]
        return CellEncoderConfig(
            protein_width=protein_width, hidden=hidden, n_layers=max(layers) + 1, n_heads=n_heads,
            intermediate=shapes["transformer_encoder.layers.0.linear1.weight"][0],
            n_output=shapes["decoder.1.weight"][0],
        )  # fmt: skip
    except KeyError as error:
        raise UnsafeFileError(f"it holds no State Embedding model: it lacks {error}.") from None


def _tensor(weights: _Weights, name: str) -> Tensor:
    tensor = verify_tensor(name, weights.read(name)).float()
    verify_finite(name, tensor)
    return tensor
