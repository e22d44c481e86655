"""A State Embedding model as it lies in a folder: its network, the protein embeddings of its genes, its origin."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scvi_tahoe.files import UnsafeFileError, member, read_yaml, reading, verify_finite, verify_tensor
from scvi_tahoe.nn import CellEncoder, CellEncoderConfig
from scvi_tahoe.pretrained._arc_files import list_checkpoints
from scvi_tahoe.pretrained._hub import resolve_source
from scvi_tahoe.pretrained._tables import read_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping

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

    Read are ``model.safetensors``, ``config.yaml`` and ``protein_embeddings.pt``, and nothing in them is executed. The
    Lightning checkpoints of such folders (``*.ckpt``) hold pickled objects of another program and are never opened.

    Parameters
    ----------
    source
        An existing folder, or a name on the Hugging Face hub, ``'owner/name'``.
    checkpoint
        Another file of weights in the folder, ``*.safetensors``.
    protein_embeddings
        File with the protein embeddings of the genes, in any format of :func:`~scvi_tahoe.read_embedding_table`. If
        None, ``protein_embeddings.pt`` of the folder. The two published models have tables of their own.
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
    table = Path(protein_embeddings) if protein_embeddings is not None else _protein_file(folder)
    settings = _settings(folder)
    network = _read_network(path, n_heads=settings["n_heads"])
    proteins = read_vectors(table)
    width = network.config.protein_width
    if wrong := next((name for name, vector in proteins.items() if len(vector) != width), None):
        raise ValueError(
            f"{table.name} has vectors of width {len(proteins[wrong])} (e.g. {wrong!r}), and {path.name} takes "
            f"{width}: it is the table of another model. Use the file that lies in the folder of the weights."
        )
    return StateEmbedding(
        network=network, proteins=proteins, n_slots=settings["n_slots"], lender=settings["lender"], source=place.name,
        revision=place.revision, checkpoint=path.name,
    )  # fmt: skip


def _weights_file(folder: Path, checkpoint: str | None) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; a folder of a State Embedding model holds {_WEIGHTS}.")
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    name = checkpoint or (found[0] if len(found) == 1 else _WEIGHTS)
    if not name.endswith(".safetensors"):
        raise ValueError(f"checkpoint={name!r} is not opened: only *.safetensors is; the folder has {found}.")
    if name in found:
        return member(folder, name)
    if list_checkpoints(folder) and (folder / "var_dims.pkl").exists():
        what = "it is a State Transition model, which TahoeST.from_pretrained reads; a State Embedding model is needed"
    elif list_checkpoints(folder):
        what = (
            "its *.ckpt holds pickled objects of another program and is not opened; download model.safetensors of the "
            "same repository into the folder"
        )
    else:
        what = f"it has {found or 'no *.safetensors'}"
    raise FileNotFoundError(f"{folder} has no {name}: {what}.")


def _protein_file(folder: Path) -> Path:
    with suppress(FileNotFoundError):
        return member(folder, _PROTEINS)
    raise FileNotFoundError(
        f"{folder} has no {_PROTEINS}, without which no gene can be read; download it from the repository of the "
        "weights into the folder, or give protein_embeddings= (--protein-embeddings)."
    )


def _settings(folder: Path) -> dict[str, int]:
    """Return what the shapes of the tensors do not say: slots, heads, and the lender of the cell's count."""
    config: dict[str, Any] = read_yaml(member(folder, _CONFIG)) if (folder / _CONFIG).exists() else {}
    settings = {}
    for name, section, key, default, least in (
        ("n_slots", "dataset", "pad_length", 2048, 2),
        ("lender", "dataset", "cls_token_idx", 3, 0),
        ("n_heads", "model", "nhead", 16, 1),
    ):
        part = config.get(section)
        value = part.get(key, default) if isinstance(part, dict) else default
        if type(value) is not int or not least <= value <= _MOST:
            raise UnsafeFileError(f"{_CONFIG} has {section}.{key}: {str(value)[:40]!r}, which cannot be.")
        settings[name] = value
    return settings


def _read_network(path: Path, *, n_heads: int) -> CellEncoder:
    from safetensors import safe_open

    with reading(path, _LIMIT), safe_open(path, framework="pt") as stored:
        names = {_plain_name(name): name for name in stored.keys()}
        ours = {name: our_name(name) for name in names if not name.startswith(_UNUSED)}
        shapes = {name: tuple(stored.get_slice(names[name]).get_shape()) for name in names}
        config = _config(shapes, n_heads)
        with torch.device("meta"):
            network = CellEncoder(config)
        wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        found = {our: shapes[name] for name, our in ours.items() if our is not None}
        unknown = sorted(name for name, our in ours.items() if our is None)
        if unknown or found != wanted:
            wrong = sorted(name for name in wanted if found.get(name) != wanted[name])
            raise UnsafeFileError(
                f"it holds no State Embedding model: {len(unknown)} tensors are unknown {unknown[:2]}, {len(wrong)} "
                f"are missing or of another shape {wrong[:2]}."
            )
        state = {str(our): _tensor(stored, names[name]) for name, our in ours.items()}
        for name in names:
            if name.startswith(_TWIN) and not torch.equal(
                _tensor(stored, names[name]), state[name.replace(_TWIN, "gene_encoder.")]
            ):
                raise UnsafeFileError(f"{name} differs from its copy under another name.")
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _plain_name(name: str) -> str:
    return name.replace("_orig_mod.", "")


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


def _tensor(stored: Any, name: str) -> Tensor:
    tensor = verify_tensor(name, stored.get_tensor(name)).float()
    verify_finite(name, tensor)
    return tensor
