"""The model of a run, before it is trained: from scratch, from published weights, or from an earlier run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe import TahoeST
from scvi_tahoe.model import pretrained_of
from scvi_tahoe.model._exchange import labels_of, network_options, objective_of
from scvi_tahoe.nn import GeneDecoderConfig, as_said, options_of_user
from scvi_tahoe.pretrained import plan_warm_start, read_pretrained
from scvi_tahoe.study._run_folder import MODEL, checkpoint_path, is_run, module_state

if TYPE_CHECKING:
    from scvi_tahoe.pretrained import PretrainedModel
    from scvi_tahoe.study._data import RunData
    from scvi_tahoe.study._run_config import StartConfig, TahoeRun


def build_model(run: TahoeRun, data: RunData) -> TahoeST:
    """Return the model of a run with its starting weights.

    Raises
    ------
    ValueError
        If the data are not as the model needs them, or the weights fit only with decisions that were not made.
    FileNotFoundError
        If there are no such weights.
    """
    TahoeST.setup_anndata(data.train, **data.config.keys)
    options = _options(run, data.train.n_vars)
    if run.start.source is None:
        return TahoeST(data.train, seed=run.seed, **options)
    weights = _weights(run.start)
    embeds = weights.labels.genes is None and weights.labels.embedding is not None
    if is_run(Path(run.start.source)) or embeds != (run.model.representation == "embedding"):
        return _from_weights(run, data, weights, options)
    options = {k: v for k, v in options.items() if k not in ("size", "representation", "batch_encoder")}
    start = run.start.arguments(TahoeST.from_pretrained)
    return TahoeST.from_pretrained(adata=data.train, seed=run.seed, **start, **options)


def _options(run: TahoeRun, n_genes: int) -> dict[str, Any]:
    """Return what the run says about the model; the rest is left to the package's defaults."""
    options = run.model.arguments(TahoeST.__init__)
    network = options["network"]
    decoder = network.get("gene_decoder")
    if isinstance(decoder, dict) and "n_genes" not in decoder:
        network = {**network, "gene_decoder": {**decoder, "n_genes": n_genes}}
    options |= {"network": network, "objective": as_said(options["objective"])}
    return {name: value for name, value in options.items() if value not in (None, {})}


def _weights(start: StartConfig) -> PretrainedModel:
    folder = Path(str(start.source))
    if not is_run(folder):
        return read_pretrained(
            str(start.source), start.checkpoint, revision=start.revision, accept_license=start.accept_license,
            attention=start.attention, offline=start.offline,
        )  # fmt: skip
    path = checkpoint_path(folder, start.checkpoint or "best")
    model = TahoeST.load(folder / MODEL, adata=False)
    model.module.load_state_dict(module_state(path))
    weights = pretrained_of(model)
    return replace(weights, provenance=replace(weights.provenance, checkpoint=f"{folder.name}/{path.name}"))


def _from_weights(run: TahoeRun, data: RunData, weights: PretrainedModel, options: dict[str, Any]) -> TahoeST:
    """Start where the cells of the weights may be something else than those of the data: only the backbone fits."""
    manager = TahoeST._get_most_recent_anndata_manager(data.train, required=True)
    stats = dict(manager.summary_stats)
    embeds = run.model.representation == "embedding"
    size = network_options(
        weights, stats, embeds=embeds, batches=run.model.batch_encoder, head=run.model.network.get("head")
    )
    size["rectify"] = not embeds
    if embeds and size.get("gene_decoder") is None and "gene_decoder" not in run.model.network:
        decoder = GeneDecoderConfig(n_genes=stats["n_vars"], hidden=(512, 512))
        size["gene_decoder"] = {"n_genes": decoder.n_genes, "hidden": list(decoder.hidden)}
    if not embeds:
        size["gene_decoder"] = None
    options = {"set_size": weights.labels.set_size, **options, "size": size}
    with options_of_user(objective=options.get("objective"), network=options.get("network")):  # the size is theirs
        model = TahoeST(data.train, seed=run.seed, **options)
    start = plan_warm_start(
        weights, model.module.config, labels_of(model), accept=run.start.accept, seed=run.seed
    )  # fmt: skip
    # tensors are mapped from a file, and training must not write into it
    model.module.network.load_state_dict({name: tensor.clone() for name, tensor in start.state_dict.items()})
    model.pretrained_parameters_ = sorted(f"network.{name}" for name in start.report.loaded)
    model.loading_report_ = start.report
    model.provenance_ = asdict(weights.provenance)
    model.weights_objective_ = objective_of(weights.loss)
    model.is_trained_ = True
    return model
