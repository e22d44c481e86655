"""Our own format: safetensors, ``config.json`` and a model card. No pickle anywhere; hashes of every file."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe._atomic_folder import atomic_folder
from scvi_tahoe.nn import NetworkConfig
from scvi_tahoe.pretrained._limits import MALFORMED, UnsafeFileError, member, one_line, verify_size
from scvi_tahoe.pretrained._model_card import licence_notice, model_card
from scvi_tahoe.pretrained._origin import LossSettings, Provenance
from scvi_tahoe.pretrained._pretrained_model import Labels, PerturbationTable, PretrainedModel
from scvi_tahoe.pretrained._prior_files import read_arrays, read_prior, write_prior
from scvi_tahoe.pretrained._report import LoadingReport, TensorRecord
from scvi_tahoe.pretrained._shapes import target_shapes
from scvi_tahoe.pretrained._yaml_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["backbone_sha256", "export_model", "is_export", "read_export"]

FORMAT = "scvi-tahoe"
FORMAT_VERSION = 1
_WEIGHTS, _TABLE, _CONFIG = "model.safetensors", "perturbations.safetensors", "config.json"
_PRIOR = "prior.safetensors"
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
        if model.perturbations.matrix is not None:
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
    if verify_checksums:
        _verify_hashes(folder, content.get("sha256"), needed=[_WEIGHTS, *([_PRIOR] if content.get("prior") else [])])
    try:
        config = NetworkConfig.from_kwargs(content["network"])
        labels = _read_labels(folder, content["labels"])
        loss = LossSettings(**content["loss"])
        provenance = Provenance(**content["provenance"])
        state = _read_weights(member(folder, _WEIGHTS))
        prior = content.get("prior")
        prior = None if prior is None else read_prior(member(folder, _PRIOR), prior, config.n_output)
        notes, space, extra = tuple(content["notes"]), content["output_space"], dict(content["extra"])
        reference = content["backbone_reference"]
    except UnsafeFileError:
        raise
    except (KeyError, TypeError, ValueError) as error:
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
        "perturbation_columns": None if model.perturbations.is_one_hot else model.perturbations.columns,
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


def _read_labels(folder: Path, content: dict[str, Any]) -> Labels:
    def names(key: str) -> tuple[str, ...] | None:
        return None if content.get(key) is None else tuple(str(name) for name in content[key])

    matrix = None
    if (folder / _TABLE).exists():
        matrix = read_arrays(member(folder, _TABLE), _WEIGHTS_LIMIT)["matrix"]
    return Labels(
        genes=names("genes"),
        decoder_genes=names("decoder_genes"),
        perturbations=PerturbationTable(names("perturbations") or (), matrix, names("perturbation_columns")),
        control=content["control"],
        batches=names("batches"),
        contexts=names("contexts"),
        embedding=content["embedding"],
        set_size=int(content["set_size"]),
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    verify_size(path, _WEIGHTS_LIMIT)
    try:
        return load_file(path)
    except (*MALFORMED, SafetensorError) as error:
        raise UnsafeFileError(f"{path.name} is damaged: {one_line(error)}") from None


def _verify_hashes(folder: Path, hashes: object, *, needed: Sequence[str]) -> None:
    if not isinstance(hashes, dict) or not hashes.keys() >= set(needed):
        raise UnsafeFileError(f"{_CONFIG} of {folder} states no hashes of its files.")
    for name, expected in hashes.items():
        # The model card is for people and may be edited.
        if not str(name).endswith(".md") and _sha256(member(folder, str(name))) != expected:
            raise UnsafeFileError(f"{name} in {folder} does not match its hash; it is damaged or was altered.")


def _verify_fit(model: PretrainedModel) -> None:
    expected = target_shapes(model.config)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise UnsafeFileError(f"{_WEIGHTS} and {_CONFIG} disagree about {len(wrong)} tensors, e.g. {wrong[:3]}.")
    if model.perturbations.width != model.config.perturbation_width:
        raise UnsafeFileError(
            f"The folder has perturbation vectors of width {model.perturbations.width} for a network that takes "
            f"{model.config.perturbation_width}."
        )


def _records(state: Mapping[str, Tensor]) -> list[TensorRecord]:
    return [TensorRecord(name, "loaded", tuple(tensor.shape), tuple(tensor.shape)) for name, tensor in state.items()]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
