"""Our own format: safetensors, ``config.json`` and a model card. No pickle anywhere; hashes of every file."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.files import (
    MALFORMED,
    UnsafeFileError,
    atomic_folder,
    member,
    one_line,
    read_json,
    verify_finite,
    verify_size,
)
from scvi_tahoe.nn import NetworkConfig
from scvi_tahoe.pretrained._formats import FORMATS, ModelFormat
from scvi_tahoe.pretrained._model_card import licence_notice, model_card
from scvi_tahoe.pretrained._pretrained_model import (
    AxisLabels,
    LossSettings,
    PretrainedModel,
    Provenance,
    target_shapes,
    verify_depth,
)
from scvi_tahoe.pretrained._prior_files import read_arrays, read_prior, write_prior
from scvi_tahoe.pretrained._report import LoadingReport, TensorRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from scvi_tahoe.nn import Attention

FORMAT = "scvi-tahoe"
FORMAT_VERSION = 1
_WEIGHTS, _TABLE, _CONFIG = "model.safetensors", "perturbations.safetensors", "config.json"
_PRIOR = "prior.safetensors"
#: Parts of ``extra`` that a model is built from.
_EXTRA = {
    "representation": str,
    "objective": dict,
    "keys": dict,
    "composition": dict,
    "fusion": dict,
    "training": dict,
    "prior": str,
}
_WEIGHTS_LIMIT = 200_000_000_000


def export_model(
    model: PretrainedModel, folder: str | Path, *, base: PretrainedModel | None = None, overwrite: bool = False
) -> None:
    """Write a model as safetensors and JSON, complete or not at all.

    Parameters
    ----------
    model
        The model; ``extra`` of it travels along.
    folder
        The folder to create.
    base
        The model whose backbone this one still has, unchanged. The backbone is then written as a reference: name,
        revision and hash of ``base``, no numbers.
    overwrite
        Replace a model folder of that name.

    Raises
    ------
    ValueError
        If the backbone differs from that of ``base``.
    FileExistsError
        If the folder exists and may not be replaced.
    """
    from safetensors.torch import save_file

    state = dict(model.state_dict)
    reference = None
    if base is not None:
        reference = _reference(state, base)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    with atomic_folder(folder, overwrite=overwrite) as place:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, place / _WEIGHTS)
        if not model.perturbations.one_hot:
            from safetensors.numpy import save_file as save_arrays

            save_arrays({"matrix": np.ascontiguousarray(model.perturbations.matrix, np.float32)}, place / _TABLE)
        prior = None if model.prior is None else write_prior(model.prior, place / _PRIOR)
        (place / "README.md").write_text(model_card(model), "utf-8")
        if model.provenance.non_commercial:
            (place / "LICENSE_NOTICE.md").write_text(licence_notice(), "utf-8")
        for path in place.glob("*.safetensors"):  # safetensors keeps others from reading what it writes
            shutil.copymode(place / "README.md", path)
        hashes = {path.name: _sha256(path) for path in sorted(place.iterdir())}
        config = json.dumps({**_config(model, reference, hashes), "prior": prior}, indent=1, ensure_ascii=False)
        (place / _CONFIG).write_text(config, "utf-8")


def is_export(folder: str | Path) -> bool:
    """Return whether a folder is in our own format."""
    return (Path(folder) / _CONFIG).is_file() and (Path(folder) / _WEIGHTS).is_file()


def read_export(
    folder: str | Path, *, base: PretrainedModel | None = None, verify_checksums: bool = True
) -> PretrainedModel:
    """Return a model from a folder in our own format.

    Parameters
    ----------
    folder
        The folder.
    base
        The model whose backbone the folder refers to, if it does.
    verify_checksums
        Compare the files with the hashes in ``config.json``.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    UnsafeFileError
        If a file is damaged, altered or not what it says.
    ValueError
        If the folder needs ``base`` and it is missing or another model.
    """
    folder = Path(folder)
    content = read_json(member(folder, _CONFIG))
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise UnsafeFileError(
            f"{folder} has format {content.get('format')!r}, version {content.get('format_version')!r}; this release "
            f"reads {FORMAT!r}, version {FORMAT_VERSION}."
        )
    try:
        config = NetworkConfig.from_kwargs(content["network"])
        verify_depth(config)
        reference = content["backbone_reference"]
        _verify_header(member(folder, _WEIGHTS), _written_shapes(config, by_reference=reference is not None))
        if verify_checksums:
            needed = [_WEIGHTS, *([_PRIOR] if content.get("prior") else [])]
            _verify_hashes(folder, content.get("sha256"), needed=needed)
        labels = _read_labels(folder, content["labels"], config)
        loss = LossSettings(**content["loss"])
        provenance = Provenance(**content["provenance"])
        state = _read_weights(member(folder, _WEIGHTS))
        prior = content.get("prior")
        prior = None if prior is None else read_prior(member(folder, _PRIOR), prior, config.n_output)
        notes, space, extra = tuple(content["notes"]), content["output_space"], _read_extra(content["extra"])
        if space not in ("gene", "all", "embedding"):
            raise ValueError(f"output space {str(space)[:40]!r} is unknown")
    except (FileNotFoundError, PermissionError, UnsafeFileError):
        raise
    except MALFORMED as error:
        raise UnsafeFileError(f"{_CONFIG} of {folder} is incomplete or damaged: {one_line(error)}") from None
    if reference is not None:
        state.update(_referenced_backbone(reference, base))
    model = PretrainedModel(
        config=config,
        state_dict=state,
        labels=labels,
        loss=loss,
        output_space=space,
        provenance=provenance,
        report=LoadingReport(tuple(_records(state)), notes=notes),
        notes=notes,
        extra=extra,
        prior=prior,
    )
    _verify_fit(model)
    return model


def backbone_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a hash of the names and numbers of a network's backbone."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith("backbone.")):
        digest.update(name.encode())
        digest.update(memoryview(state[name].detach().contiguous().cpu().numpy()).cast("B"))
    return digest.hexdigest()


def _config(model: PretrainedModel, reference: dict[str, Any] | None, hashes: dict[str, str]) -> dict[str, Any]:
    labels = {
        "genes": model.labels.genes,
        "decoder_genes": model.labels.decoder_genes,
        "perturbations": model.perturbations.names,
        "perturbation_columns": None if model.perturbations.one_hot else model.perturbations.columns,
        "control": model.control,
        "batches": model.batches,
        "contexts": model.contexts,
        "embedding": model.embed_key,
        "set_size": model.set_size,
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": model.config.to_kwargs(),
        "output_space": model.output_space,
        "loss": model.loss.to_kwargs(),
        "provenance": asdict(model.provenance),
        "backbone_reference": reference,
        "notes": model.notes,
        "extra": model.extra,
        "sha256": hashes,
        "labels": labels,
    }


def _reference(state: Mapping[str, Tensor], base: PretrainedModel) -> dict[str, Any]:
    digest = backbone_sha256(state)
    if digest != backbone_sha256(base.state_dict):
        raise ValueError(
            f"The backbone differs from that of {base.provenance.source}: it was trained, or comes from elsewhere. "
            "Export without base to write its numbers."
        )
    origin = base.provenance
    return {"source": origin.source, "revision": origin.revision, "checkpoint": origin.checkpoint, "sha256": digest}


def _referenced_backbone(reference: dict[str, Any], base: PretrainedModel | None) -> dict[str, Tensor]:
    name = f"{reference.get('source')} (revision {reference.get('revision')}, {reference.get('checkpoint')})"
    if base is None:
        raise ValueError(f"This folder refers to the backbone of {name}; load that model and give it as base.")
    if backbone_sha256(base.state_dict) != reference.get("sha256"):
        raise ValueError(f"This folder refers to the backbone of {name}; base has another one.")
    return {name: tensor for name, tensor in base.state_dict.items() if name.startswith("backbone.")}


def _read_extra(content: dict[str, Any]) -> dict[str, Any]:
    """Return what travels along, each part of the kind that it is written as."""
    for name, kind in _EXTRA.items():
        if content.get(name) is not None and not isinstance(content[name], kind):
            raise TypeError(f"{name} is not of the kind {kind.__name__}")
    return dict(content)


def _read_labels(folder: Path, content: dict[str, Any], config: NetworkConfig) -> AxisLabels:
    def names(key: str) -> tuple[str, ...] | None:
        values = content.get(key)
        if values is not None and not (isinstance(values, list) and all(isinstance(v, str) for v in values)):
            raise ValueError(f"{key} is not a list of names")
        return None if values is None else tuple(values)

    def name(key: str) -> str | None:
        if not isinstance(content[key], str | None):
            raise ValueError(f"{key} is not a name")
        return content[key]

    labels = names("perturbations") or ()
    if (folder / _TABLE).exists():
        matrix = read_arrays(member(folder, _TABLE), _WEIGHTS_LIMIT)["matrix"]
        if matrix.dtype != np.float32 or not np.isfinite(matrix).all():
            raise UnsafeFileError(f"{_TABLE} holds something else than finite numbers in single precision.")
        table = EmbeddingTable(labels, matrix, columns=names("perturbation_columns"))
        _verify_width(table.width, config)
    else:
        _verify_width(len(labels), config)  # before a matrix of that size is made
        table = EmbeddingTable.one_hot_of(labels)
    set_size = content["set_size"]
    if not isinstance(set_size, int) or not 0 < set_size < 1_000_000:
        raise ValueError(f"a set cannot have {str(set_size)[:40]} cells")
    return AxisLabels(
        genes=names("genes"),
        decoder_genes=names("decoder_genes"),
        perturbations=table,
        control=name("control"),
        batches=names("batches"),
        contexts=names("contexts"),
        embedding=name("embedding"),
        set_size=set_size,
    )


def _written_shapes(config: NetworkConfig, *, by_reference: bool) -> dict[str, tuple[int, ...]]:
    shapes = target_shapes(config)
    return {name: shape for name, shape in shapes.items() if not (by_reference and name.startswith("backbone."))}


def _verify_header(path: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Compare what a file of weights says of itself with the network, before its numbers are read or hashed."""
    from safetensors import SafetensorError, safe_open

    verify_size(path, _WEIGHTS_LIMIT)
    try:
        with safe_open(path, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}
            found = {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}
    except (*MALFORMED, SafetensorError) as error:
        raise UnsafeFileError(f"{path.name} is damaged: {one_line(error)}") from None
    wanted = {name: ("F32", shape) for name, shape in expected.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise UnsafeFileError(f"{path.name} and {_CONFIG} disagree about {len(wrong)} tensors, e.g. {wrong[:3]}.")


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (*MALFORMED, SafetensorError) as error:
        raise UnsafeFileError(f"{path.name} is damaged: {one_line(error)}") from None
    for name, tensor in state.items():
        verify_finite(name, tensor)
    return state


def _verify_hashes(folder: Path, hashes: object, *, needed: Sequence[str]) -> None:
    if not isinstance(hashes, dict) or not hashes.keys() >= set(needed):
        raise UnsafeFileError(f"{_CONFIG} of {folder} states no hashes of its files.")
    for name, expected in hashes.items():
        # The model card is for people and may be edited.
        if not str(name).endswith(".md") and _sha256(member(folder, str(name))) != expected:
            raise UnsafeFileError(f"{name} in {folder} does not match its hash; it is damaged or was altered.")


def _verify_fit(model: PretrainedModel) -> None:
    """Refuse labels of another number than the axis they name."""
    config, labels, decoder = model.config, model.labels, model.config.gene_decoder
    n_batches = config.n_batches or config.n_batch_classes
    axes = {
        "genes": (labels.genes, config.n_output),
        "decoder genes": (labels.decoder_genes, decoder.n_genes if decoder else None),
        "batches": (labels.batches if n_batches else None, n_batches),
    }
    for axis, (names, n) in axes.items():
        if names is not None and (len(names) != n or len(set(names)) != n):
            raise UnsafeFileError(
                f"{_CONFIG} names {len(names)} {axis}, {len(set(names))} of them different, for a network of {n}."
            )


def _verify_width(width: int, config: NetworkConfig) -> None:
    if width != config.perturbation_width:
        raise UnsafeFileError(
            f"The folder has perturbation vectors of width {width} for a network that takes "
            f"{config.perturbation_width}."
        )


def _records(state: Mapping[str, Tensor]) -> list[TensorRecord]:
    return [TensorRecord(name, "loaded", tuple(tensor.shape), tuple(tensor.shape)) for name, tensor in state.items()]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(
    folder: Path,
    *,
    checkpoint: str | None,
    attention: Attention | None,
    genes: Sequence[str] | None,
    base: PretrainedModel | None,
) -> PretrainedModel:
    if checkpoint is not None or attention is not None:
        raise ValueError(f"{folder} is in our own format, which has one set of weights and states its attention.")
    model = read_export(folder, base=base)
    return model if genes is None else model.with_genes(genes)


FORMATS.register(FORMAT, ModelFormat(matches=is_export, read=_read, write=export_model, takes_base=True))
