"""Arc's format: a folder of arc-state's, read without running anything of it, and written so that arc-state runs it."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import (
    UnsafeFileError,
    atomic_folder,
    checksums,
    member,
    read_torch,
    read_yaml,
    verify_finite,
    verify_space,
    verify_tensor,
)
from scvi_tahoe.pretrained._arc_files import (
    NO_BATCHES,
    find_checkpoint,
    gene_names,
    list_checkpoints,
    read_batches,
    read_gene_names,
    read_labels,
    read_perturbations,
)
from scvi_tahoe.pretrained._arc_settings import (
    TOKEN_ROWS,
    ArcColumns,
    backbone_settings,
    config_file,
    decide_attention,
    dimensions,
    hyper_parameters,
    loss_settings,
    n_positions,
    network_config,
    output_space,
    unused_tensors,
)
from scvi_tahoe.pretrained._arc_tensors import BACKBONE, DEAD_TABLES, fold_lora, from_arc, key_entries, to_arc
from scvi_tahoe.pretrained._licence import licence_notice
from scvi_tahoe.pretrained._pretrained_model import (
    FORMATS,
    UNNAMED_GENES,
    AxisLabels,
    ModelFormat,
    PretrainedModel,
    Provenance,
    is_embedding,
    target_shapes,
    verify_depth,
)
from scvi_tahoe.pretrained._report import LoadingReport, TensorRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from scvi_tahoe.nn import AttentionName, NetworkConfig

_LIGHTNING_VERSION = "2.5.0"
_MAX_TENSORS = 100_000
_SHOWN = 5  # other checkpoints that the report names
_TAHOE_CONTROL = "[('DMSO_TF', 0.0, 'uM')]"


@checked()
def read_arc_folder(
    folder: str | Path,
    checkpoint: str | None = None,
    *,
    attention: AttentionName | None = None,
    genes: Sequence[str] | None = None,
    verify_checksums: bool = True,
) -> PretrainedModel:
    """Return network, weights and labels of a folder in Arc's format.

    Nothing in the folder is executed: checkpoints are loaded weights-only and memory-mapped (the optimizer state stays
    on disk), pickles by an unpickler that knows six names, YAML by the safe loader.

    Parameters
    ----------
    folder
        The folder, or a checkpoint file in it. Checkpoints lie in the folder or in ``checkpoints/``.
    checkpoint
        ``'best'``, ``'last'``, ``'final'``, ``'step=<n>'`` or a file name. If None, the first there is of best, final,
        last, and the highest step; the report says which of several.
    attention
        Overrides the attention the folder states or leaves open.
    genes
        Names of the network's genes, in its order, for folders that lack them.
    verify_checksums
        Compare the weights with the checksums in the checkpoint (reads them once).

    Returns
    -------
    Network configuration, state dict in our names, labels, loss settings, provenance and report.

    Raises
    ------
    FileNotFoundError
        If the folder, the checkpoint or a label map that the network needs is missing.
    UnsafeFileError
        If a file is damaged, forged, or holds more than plain data. It is a ``ValueError``.
    ValueError
        If the model has a part that is not supported, named in the message.
    """
    folder, path = find_checkpoint(Path(folder), checkpoint)
    content = read_torch(path)
    hyper = _hyper_parameters(folder, content)
    tensors, known = _verify_tensors(content["state_dict"]), checksums(path) if verify_checksums else None
    tensors, folded = fold_lora(tensors, hyper, lambda name, tensor: _checked(name, tensor, known))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dropped = {name: _dead_table(name, tensors[name]) for name in DEAD_TABLES if name in tensors}
    dropped |= unused_tensors(shapes, hyper)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    decision = decide_attention(hyper, attention)
    config = network_config({name: shapes[name] for name in tensors}, hyper, decision.kind)
    verify_depth(config)
    labels, notes = _labels(folder, config, hyper)
    if checkpoint is None and len(others := list_checkpoints(folder)) > 1:
        others = [name for name in others if not name.endswith(path.name)]
        notes = (*notes, f"of its checkpoints {path.name} was read; others: {', '.join(others[:_SHOWN])}")
    if not decision.certain:
        notes = (*notes, f"attention: {decision.reason}")
    provenance = Provenance(
        source="".join(c if c.isprintable() else " " for c in folder.resolve().name),
        checkpoint=path.name,
        format="arc",
        attention_reason=decision.reason,
        attention_certain=decision.certain,
        non_commercial=True,
    )

    def check(name: str, tensor: Tensor) -> Tensor:
        # A folded matrix is new and has no checksum; what it was made of has been checked.
        return _checked(name, tensor, None if name in folded else known)

    state = from_arc(tensors, config, target_shapes(config), check)
    records = [TensorRecord(name, "dropped", shapes[name], None, reason) for name, reason in dropped.items()]
    records = [*_loaded(config, state, shapes, folded), *records]
    model = PretrainedModel(
        config=config,
        state_dict=state,
        labels=labels,
        loss=loss_settings(hyper),
        output_space=_output_space(hyper),
        provenance=provenance,
        report=LoadingReport(tuple(records), notes=notes),
        notes=notes,
    )
    return model if genes is None else model.with_genes(genes)


def _hyper_parameters(folder: Path, content: Any) -> dict[str, Any]:
    """Return the hyper-parameters in the checkpoint, or those that the CSV logger wrote next to it."""
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UnsafeFileError("The checkpoint holds no state_dict; it is not one of Lightning's.")
    hyper = content.get("hyper_parameters")
    if isinstance(hyper, dict) and hyper:
        return hyper
    for name in (*(f"version_{i}/hparams.yaml" for i in reversed(range(100))), "hparams.yaml"):
        with suppress(FileNotFoundError):
            return read_yaml(member(folder, name))
    raise FileNotFoundError(f"Neither the checkpoint nor a version_*/hparams.yaml in {folder} holds hyper-parameters.")


def _verify_tensors(state: dict[Any, Any]) -> dict[str, Tensor]:
    if len(state) > _MAX_TENSORS or not all(isinstance(name, str) for name in state):
        raise UnsafeFileError("The state_dict is not a mapping of names to tensors.")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.is_nested:
            raise UnsafeFileError(f"{name} in the state_dict is not a tensor.")
    return state


def _checked(name: str, tensor: Tensor, known: set[tuple[int, int]] | None) -> Tensor:
    # In single precision before it is looked at: a double may be finite and its single not.
    numbers = verify_tensor(name, tensor, known).detach().float()
    verify_finite(name, numbers)
    return numbers


def _dead_table(name: str, table: Tensor) -> str:
    # What is looked at is the memory behind the table, not the table: its shape may claim anything.
    plain = table.device.type == "cpu" and table.layout is torch.strided and not (table.is_nested or table.is_quantized)
    if not plain or bool(torch.empty(0, dtype=torch.uint8).set_(table.untyped_storage()).any()):
        raise UnsafeFileError(f"{name} is expected to be an unused table of zeros and is not; refusing to drop it.")
    return "unused table of zeros"


def _labels(folder: Path, config: NetworkConfig, hyper: dict[str, Any]) -> tuple[AxisLabels, tuple[str, ...]]:
    perturbations = read_perturbations(folder)
    if perturbations.width != config.n_perturbation:
        raise UnsafeFileError(
            f"pert_onehot_map has vectors of width {perturbations.width} for an encoder of {config.n_perturbation}; "
            "the files do not belong together."
        )
    batches, n_batches = read_batches(folder), config.n_batches or config.n_batch_classes
    if n_batches and batches is None:
        raise FileNotFoundError(f"{folder} has no batch_onehot_map, which its batch encoder needs.")
    if n_batches and batches is not None and len(batches) != n_batches:
        raise UnsafeFileError(f"batch_onehot_map has {len(batches)} labels, the network {n_batches}.")
    genes, decoder_genes, notes = _gene_axes(folder, config, hyper)
    control, key = hyper.get("control_pert"), hyper.get("embed_key")
    control = control if isinstance(control, str) else None
    if control not in perturbations.names and _TAHOE_CONTROL in perturbations.names:
        # For its column drugname_drugconc arc-state replaces the configured control after writing the configuration.
        notes = (*notes, f"the control label is {_TAHOE_CONTROL!r}; the {control!r} that the folder states is none")
        control = _TAHOE_CONTROL
    if control not in perturbations.names:
        notes = (*notes, f"the control label {control!r} is not among the {len(perturbations.names)} perturbations")
    if not isinstance(key, str | None):
        raise UnsafeFileError(f"The folder states the cell embedding {str(key)[:40]!r}, which is not a name.")
    return AxisLabels(
        genes=genes,
        decoder_genes=decoder_genes,
        perturbations=perturbations,
        control=control,
        batches=batches,
        contexts=read_labels(folder, "cell_type_onehot_map"),
        embedding=key,
        set_size=_set_size(hyper),
    ), notes


def _gene_axes(
    folder: Path, config: NetworkConfig, hyper: dict[str, Any]
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, tuple[str, ...]]:
    """Return names for the cells' and the decoder's columns, where a list of that length exists, and notes."""
    lists = [names for names in (gene_names(hyper), read_gene_names(folder)) if names is not None]

    def of_length(width: int) -> tuple[str, ...] | None:
        return next((names for names in lists if len(names) == width and len(set(names)) == width), None)

    notes: tuple[str, ...] = ()
    expression = not is_embedding(hyper.get("embed_key"))
    genes = of_length(config.n_output) if expression else None
    decoder_genes = of_length(config.gene_decoder.n_genes) if config.gene_decoder else None
    if expression and genes is None:
        lengths = " and ".join(map(str, sorted({len(names) for names in lists})))
        found = f" (its lists have {lengths} names)" if lengths else ""
        notes = (f"{UNNAMED_GENES}, {config.n_output}{found}; give their names in its order with genes=",)
    if config.gene_decoder and decoder_genes is None:
        notes = (*notes, f"the folder does not name the {config.gene_decoder.n_genes} genes of its decoder")
    return genes, decoder_genes, notes


def _set_size(hyper: dict[str, Any]) -> int:
    backbone = backbone_settings(hyper)
    for value in (hyper.get("cell_set_len"), backbone.get("max_position_embeddings"), backbone.get("n_positions")):
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1_000_000:
            return value
    raise UnsafeFileError("The hyper-parameters do not state the set size (cell_set_len).")


def _output_space(hyper: dict[str, Any]) -> Literal["gene", "all", "embedding"]:
    space = hyper.get("output_space", "gene")
    if space not in ("gene", "all", "embedding"):
        raise UnsafeFileError(f"The folder states the unknown output space {str(space)[:40]!r}.")
    return space


def _loaded(
    config: NetworkConfig, state: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], folded: list[str]
) -> Iterator[TensorRecord]:
    for entry in key_entries(config):
        shape = tuple(state[entry.ours].shape)
        detail = "LoRA folded in" if set(entry.theirs) & set(folded) else ""
        source = shapes[entry.theirs[0]] if len(entry.theirs) == 1 else shape
        yield TensorRecord(entry.ours, "loaded", source, shape, detail)


def write_arc_folder(
    model: PretrainedModel, folder: str | Path, *, columns: ArcColumns | None = None, overwrite: bool = False
) -> None:
    """Write a model as a folder in Arc's format, complete or not at all; a ValueError names all that arc-state lacks.

    The token tables of zeros that arc-state expects are single zeros with a shape and take no room in the file.
    """
    refusals = arc_refusals(model)
    if refusals:
        raise ValueError("arc-state cannot run this model: " + "; ".join(refusals) + ".")
    hyper = hyper_parameters(model)
    verify_space(folder, sum(tensor.nbytes for tensor in model.state_dict.values()), "the export")
    with atomic_folder(folder, overwrite=overwrite) as place:
        config = config_file(model, hyper, columns or ArcColumns())
        (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
        (place / "var_dims.pkl").write_bytes(pickle.dumps(dimensions(model), protocol=4))
        table = model.perturbations
        # Rows of one matrix: torch writes the memory they share once.
        matrix = torch.eye(len(table.names)) if table.one_hot else torch.from_numpy(table.matrix).float()
        torch.save(dict(zip(table.names, matrix, strict=True)), place / "pert_onehot_map.pt")
        torch.save(_one_hot_map(model.batches or (NO_BATCHES,)), place / "batch_onehot_map.torch")
        if model.contexts:
            torch.save(_one_hot_map(model.contexts), place / "cell_type_onehot_map.torch")
        if model.provenance.non_commercial:
            (place / "LICENSE_NOTICE.md").write_text(licence_notice(model.provenance), "utf-8")
        (place / "checkpoints").mkdir()
        checkpoint = {
            "state_dict": _state_dict(model),
            "hyper_parameters": hyper,
            "pytorch-lightning_version": _LIGHTNING_VERSION,
            "epoch": 0,
            "global_step": 0,
        }
        torch.save(checkpoint, place / "checkpoints" / "final.ckpt")


def arc_refusals(model: PretrainedModel) -> list[str]:
    """Return what a model does that arc-state has no counterpart for; empty if it can be exported."""
    config, gpt2 = model.config, model.config.backbone == "gpt2"
    rectify, n_batches = config.gene_decoder is None or not model.embeds, config.n_batches or config.n_batch_classes
    has_prior = model.prior is not None or model.extra.get("prior", "none") != "none"
    checks = [
        (config.head == "delta", "head='delta' has no counterpart there (train with 'hidden_residual' or 'down_up')"),
        (not gpt2 and config.attention == "causal", "attention='causal' of a llama backbone is none of its two kinds"),
        (has_prior, "it knows no prior (export to our own format, or train with prior='none')"),
        (config.n_perturbation_parts > 1, "it encodes a perturbation as one vector (register combination='sum')"),
        (gpt2 and config.attention == "full", "its GPT-2 backbone is always causal"),
        (config.n_batches and config.batch_token, "it has either a batch encoder or a batch token"),
        (config.rectify != rectify, f"it would run with rectify={rectify}"),
        (gpt2 and config.intermediate != 4 * config.hidden, "its GPT-2 backbone has intermediate = 4 * hidden"),
        (model.control is None, "it needs a control label"),
        (n_batches and len(model.batches or ()) != n_batches, "it needs as many batch labels as the network has"),
    ]
    return [text for refused, text in checks if refused]


def _state_dict(model: PretrainedModel) -> dict[str, Tensor]:
    config = model.config
    state = to_arc(model.state_dict, config)
    # Parts of one of our matrices get memory of their own: shared memory confuses other tools.
    state = {name: tensor if _owns_memory(tensor) else tensor.contiguous().clone() for name, tensor in state.items()}
    if config.backbone == "llama":
        state[f"{BACKBONE}.embed_tokens.weight"] = _zeros(TOKEN_ROWS["llama"], config.hidden)
    else:
        state[f"{BACKBONE}.wte.weight"] = _zeros(TOKEN_ROWS["gpt2"], config.hidden)
        state[f"{BACKBONE}.wpe.weight"] = _zeros(n_positions(config, model.set_size), config.hidden)
    if output_space(model) == "all" and config.head == "absolute":
        width, narrow = config.n_output, config.down_width
        shapes = {"0.weight": (narrow, width), "0.bias": (narrow,), "2.weight": (width, narrow), "2.bias": (width,)}
        state.update({f"final_down_then_up.{name}": _zeros(*shape) for name, shape in shapes.items()})
    return state


def _owns_memory(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros((1,) * len(shape)).expand(*shape)


def _one_hot_map(names: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(zip(names, torch.eye(len(names)), strict=True))


def _write(model: PretrainedModel, folder: str | Path, *, overwrite: bool) -> None:
    prior = model.extra.get("prior", "none")
    if prior != "none":
        raise ValueError(
            f"arc-state has no counterpart for prior={prior!r}. Train a model with prior='none' and a head it knows, "
            "TahoeST(adata, prior='none', network={'head': 'hidden_residual'}), or export with format='scvi-tahoe', "
            "which keeps the prior."
        )
    keys = model.extra.get("keys") or {}
    found = {name: keys.get(f"{name}_key") for name in ("perturbation", "context", "batch")}
    columns = ArcColumns(**{name: str(column) for name, column in found.items() if column})
    write_arc_folder(model, folder, columns=columns, overwrite=overwrite)


def _read(folder: Path, *, base: PretrainedModel | None, **options: Any) -> PretrainedModel:
    if base is not None:
        raise ValueError(f"{folder} is in Arc's format, which holds all weights; leave out those of its backbone.")
    return read_arc_folder(folder, **options)


FORMATS.register("arc", ModelFormat(matches=None, read=_read, write=_write, refusals=arc_refusals))
