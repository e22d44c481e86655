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
    file_sha256,
    member,
    one_line,
    read_json,
    reading,
    verify_finite,
    verify_space,
)
from scvi_tahoe.nn import NetworkConfig
from scvi_tahoe.pretrained._licence import licence_notice
from scvi_tahoe.pretrained._model_card import model_card
from scvi_tahoe.pretrained._pretrained_model import (
    FORMATS,
    AxisLabels,
    LossSettings,
    ModelFormat,
    PretrainedModel,
    Provenance,
    target_shapes,
    verify_depth,
)
from scvi_tahoe.pretrained._report import LoadingReport, TensorRecord
from scvi_tahoe.pretrained._run_weights import RUN_MODEL, holds_run, run_checkpoint, with_checkpoint
from scvi_tahoe.response import wrong_response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

FORMAT = "scvi-tahoe"
FORMAT_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_TABLE, _PRIOR = "perturbations.safetensors", "prior.safetensors"
#: Parts of ``extra`` that a model is built from.
_EXTRA: dict[str, type] = {"representation": str, "prior": str, "criterion": str}
_EXTRA |= dict.fromkeys(("objective", "keys", "composition", "fusion", "training", "fitted"), dict)
_EXTRA |= {"measured": list}
_SIZE_LIMIT = 200_000_000_000
#: Axes of every array: C conditions, K contexts, G genes, Q quantiles, R donors, V their values, I is R + 1.
_AXES = {
    "means": "CG",
    "variances": "CG",
    "n_cells": "C",
    "control_means": "KG",
    "control_variances": "KG",
    "n_controls": "K",
    "control_quantiles": "KQG",
    "donor_condition": "R",
    "donors.data": "V",
    "donors.indices": "V",
    "donors.indptr": "I",
}
_WHOLE = {"n_cells", "n_controls", "donor_condition", "donors.indices", "donors.indptr"}
_KINDS = ("mean", "transfer", "cells")


def export_model(
    model: PretrainedModel, folder: str | Path, *, base: PretrainedModel | None = None, overwrite: bool = False
) -> None:
    """Write a model as safetensors and JSON, complete or not at all; ``extra`` of it travels along.

    With ``base``, whose backbone the model still has, the backbone is written as a reference: name, revision, hash.
    """
    from safetensors.torch import save_file

    state, reference = dict(model.state_dict), None
    if base is not None:
        reference = _reference(state, base)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    verify_space(folder, sum(tensor.nbytes for tensor in state.values()), "the export")
    with atomic_folder(folder, overwrite=overwrite) as place:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, place / _WEIGHTS)
        if not model.perturbations.one_hot:
            from safetensors.numpy import save_file as save_arrays

            save_arrays({"matrix": np.ascontiguousarray(model.perturbations.matrix, np.float32)}, place / _TABLE)
        prior = None if model.prior is None else _write_prior(model.prior, place / _PRIOR)
        (place / "README.md").write_text(model_card(model), "utf-8")
        if model.provenance.non_commercial:
            (place / "LICENSE_NOTICE.md").write_text(licence_notice(model.provenance), "utf-8")
        for path in place.glob("*.safetensors"):  # safetensors keeps others from reading what it writes
            shutil.copymode(place / "README.md", path)
        hashes = {path.name: file_sha256(path) for path in sorted(place.iterdir())}
        config = json.dumps({**_config(model, reference, hashes), "prior": prior}, indent=1, ensure_ascii=False)
        (place / _CONFIG).write_text(config, "utf-8")


def is_export(folder: str | Path) -> bool:
    """Return whether a folder is in our own format."""
    return (Path(folder) / _CONFIG).is_file() and (Path(folder) / _WEIGHTS).is_file()


def read_export(
    folder: str | Path, *, base: PretrainedModel | None = None, verify_checksums: bool = True
) -> PretrainedModel:
    """Return a model from a folder in our own format; ``base`` has the backbone that the folder may refer to."""
    folder = Path(folder)
    content = read_json(member(folder, _CONFIG))
    name, version = content.get("format"), content.get("format_version")
    if (name, version) != (FORMAT, FORMAT_VERSION):
        reads = f"this release reads {FORMAT!r}, version {FORMAT_VERSION}"
        raise UnsafeFileError(f"{folder} has format {name!r}, version {version!r}; {reads}.")
    try:
        config = NetworkConfig.from_kwargs(content["network"])
        verify_depth(config)
        reference = content["backbone_reference"]
        _verify_header(member(folder, _WEIGHTS), config, by_reference=reference is not None)
        if verify_checksums:
            needed = [_WEIGHTS, *([_PRIOR] if content.get("prior") else [])]
            _verify_hashes(folder, content.get("sha256"), needed=needed)
        labels = _read_labels(folder, content["labels"], config)
        loss = LossSettings(**content["loss"])
        provenance = Provenance(**content["provenance"])
        state = _read_weights(member(folder, _WEIGHTS))
        if (prior := content.get("prior")) is not None:
            prior = _read_prior(member(folder, _PRIOR), prior, config.n_output)
        notes, space, extra = tuple(content["notes"]), content["output_space"], dict(content["extra"])
        for name, kind in _EXTRA.items():
            if not isinstance(extra.get(name), kind | None):
                raise TypeError(f"{name} is not of the kind {kind.__name__}")
        if space not in ("gene", "all", "embedding"):
            raise ValueError(f"output space {str(space)[:40]!r} is unknown")
    except (FileNotFoundError, PermissionError, UnsafeFileError):
        raise
    except MALFORMED as error:
        raise UnsafeFileError(f"{_CONFIG} of {folder} is incomplete or damaged: {one_line(error)}") from None
    state.update(_referenced_backbone(reference, base))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    records = tuple(TensorRecord(name, "loaded", shape, shape) for name, shape in shapes.items())
    model = PretrainedModel(
        config=config,
        state_dict=state,
        labels=labels,
        loss=loss,
        output_space=space,
        provenance=provenance,
        report=LoadingReport(records, notes=notes),
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


def _referenced_backbone(reference: dict[str, Any] | None, base: PretrainedModel | None) -> dict[str, Tensor]:
    if reference is None:
        if base is not None:
            raise ValueError("This folder holds all of its weights; leave out those of its backbone.")
        return {}
    name = f"{reference.get('source')} (revision {reference.get('revision')}, {reference.get('checkpoint')})"
    if base is None:
        raise ValueError(f"This folder refers to the backbone of {name}; load that model and give it as base.")
    if backbone_sha256(base.state_dict) != reference.get("sha256"):
        raise ValueError(f"This folder refers to the backbone of {name}; base has another one.")
    return {name: tensor for name, tensor in base.state_dict.items() if name.startswith("backbone.")}


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
        matrix = _read_arrays(member(folder, _TABLE))["matrix"]
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


def _verify_header(path: Path, config: NetworkConfig, *, by_reference: bool) -> None:
    """Compare what a file of weights says of itself with the network, before its numbers are read or hashed."""
    from safetensors import safe_open

    with reading(path, _SIZE_LIMIT), safe_open(path, framework="pt") as stored:
        slices = {name: stored.get_slice(name) for name in stored.keys()}
        found = {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}
    shapes = target_shapes(config).items()
    wanted = {name: ("F32", s) for name, s in shapes if not (by_reference and name.startswith("backbone."))}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise UnsafeFileError(f"{path.name} and {_CONFIG} disagree about {len(wrong)} tensors, e.g. {wrong[:3]}.")


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with reading(path, _SIZE_LIMIT):
        state = load_file(path)
    for name, tensor in state.items():
        verify_finite(name, tensor)
    return state


def _verify_hashes(folder: Path, hashes: object, *, needed: Sequence[str]) -> None:
    if not isinstance(hashes, dict) or not hashes.keys() >= set(needed):
        raise UnsafeFileError(f"{_CONFIG} of {folder} states no hashes of its files.")
    for name, expected in hashes.items():
        # The model card is for people and may be edited.
        if not str(name).endswith(".md") and file_sha256(member(folder, str(name))) != expected:
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
            found = f"{len(names)} {axis}, {len(set(names))} of them different"
            raise UnsafeFileError(f"{_CONFIG} names {found}, for a network of {n}.")


def _verify_width(width: int, config: NetworkConfig) -> None:
    if width != config.perturbation_width:
        takes = config.perturbation_width
        raise UnsafeFileError(f"The folder has perturbation vectors of width {width} for a network that takes {takes}.")


def _write_prior(prior: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write the arrays of a prior (see :class:`PretrainedModel`) and return the rest, for JSON."""
    from safetensors.numpy import save_file

    if prior["kind"] == "response":
        save_file({name: np.ascontiguousarray(values) for name, values in prior["arrays"].items()}, path)
        conditions = [list(condition) for condition in prior["conditions"]]
        said = {"conditions": conditions, "contexts": list(prior["contexts"]), "settings": prior["settings"]}
        return {"kind": "response", **said}
    flat = {**prior, **{f"donors.{name}": values for name, values in prior["donors"].items()}}
    save_file({name: np.ascontiguousarray(flat[name]) for name in _AXES}, path)
    conditions = [list(condition) for condition in prior["conditions"]]
    return {"kind": prior["kind"], "conditions": conditions, "contexts": list(prior["contexts"])}


def _read_prior(path: Path, labels: Mapping[str, Any], n_genes: int) -> dict[str, Any]:
    conditions = [(str(context), str(perturbation)) for context, perturbation in labels["conditions"]]
    contexts = tuple(str(context) for context in labels["contexts"])
    arrays = _read_arrays(path)
    if labels["kind"] == "response":
        found = {"conditions": conditions, "contexts": contexts, "settings": labels["settings"], "arrays": arrays}
        if wrong := _wrong_conditions(conditions, contexts) or wrong_response(found, n_genes):
            raise UnsafeFileError(f"{path.name} does not hold a response model of this network: {wrong}.")
        return {"kind": "response", **found}
    sizes = {"C": len(conditions), "K": len(contexts), "G": n_genes}
    wrong = _wrong_labels(labels["kind"], conditions, contexts) or _wrong_shapes(arrays, sizes)
    if wrong := wrong or _wrong_values(arrays, labels["kind"], n_conditions=len(conditions), n_genes=n_genes):
        raise UnsafeFileError(f"{path.name} does not hold a prior of this network: {wrong}.")
    donors: dict[str, Any] = {name: arrays.pop(f"donors.{name}") for name in ("data", "indices", "indptr")}
    donors["shape"] = (len(arrays["donor_condition"]), n_genes)
    return {**arrays, "kind": labels["kind"], "conditions": conditions, "contexts": contexts, "donors": donors}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file."""
    from safetensors.numpy import load_file

    with reading(path, _SIZE_LIMIT):
        return load_file(path)


def _wrong_labels(kind: object, conditions: list[tuple[str, str]], contexts: tuple[str, ...]) -> str:
    if kind not in _KINDS:
        return f"its kind is {kind!r}, and there are {[*_KINDS, 'response']}"
    return _wrong_conditions(conditions, contexts)


def _wrong_conditions(conditions: list[tuple[str, str]], contexts: tuple[str, ...]) -> str:
    if len(set(conditions)) != len(conditions) or len(set(contexts)) != len(contexts):
        return "a condition or context occurs twice"
    if not conditions or (unknown := {context for context, _ in conditions} - set(contexts)):
        return f"there are no controls of {sorted(unknown)[:3]}" if conditions else "it has no conditions"
    return ""


def _wrong_shapes(arrays: Mapping[str, np.ndarray], sizes: dict[str, int]) -> str:
    if arrays.keys() != _AXES.keys():
        return f"it has the arrays {sorted(arrays)}"
    for name, axes in _AXES.items():
        shape = arrays[name].shape
        if len(shape) != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape, strict=True)):
            return f"{name} has the shape {shape}"
        if arrays[name].dtype.kind != "i" if name in _WHOLE else arrays[name].dtype != np.float32:
            return f"{name} has the type {arrays[name].dtype}"
    return "" if sizes["I"] == sizes["R"] + 1 and sizes["Q"] else "donors or quantiles are incomplete"


def _wrong_values(arrays: Mapping[str, np.ndarray], kind: str, *, n_conditions: int, n_genes: int) -> str:
    for name, values in arrays.items():
        if name not in _WHOLE and not np.isfinite(values).all():
            return f"{name} has values that are not finite"
    indices, indptr, owner = (arrays[name] for name in ("donors.indices", "donors.indptr", "donor_condition"))
    lowest = min(arrays["n_cells"].min(), arrays["n_controls"].min())
    rows_fit = indptr[0] == 0 and indptr[-1] == len(indices) and (np.diff(indptr) >= 0).all()
    within = all(((a >= 0) & (a < n)).all() for a, n in ((indices, n_genes), (owner, n_conditions)))
    if lowest < 1 or not rows_fit or not within:
        return "numbers of cells, or places of its donors, are out of range"
    if kind == "cells" and len(np.unique(owner)) != n_conditions:
        return "a condition has no donors"
    return ""


def _matches(folder: Path) -> bool:
    return is_export(folder) or holds_run(folder)


def _read(
    folder: Path,
    *,
    checkpoint: str | None = None,
    genes: Sequence[str] | None,
    base: PretrainedModel | None,
    **of_arc: object,
) -> PretrainedModel:
    of_run = not is_export(folder)
    if any(option is not None for option in of_arc.values()) or (checkpoint is not None and not of_run):
        raise ValueError(f"{folder} is in our own format, which has one set of weights and states its attention.")
    path = None if checkpoint is None else run_checkpoint(folder, checkpoint)
    model = read_export(folder / RUN_MODEL if of_run else folder, base=base)
    model = model if path is None else with_checkpoint(model, path)
    return model if genes is None else model.with_genes(genes)


FORMATS.register(FORMAT, ModelFormat(matches=_matches, read=_read, write=export_model, takes_base=True))
