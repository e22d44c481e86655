"""The model of a run, before it is trained: from scratch, from published weights, or from an earlier run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe import TahoeST
from scvi_tahoe.model import pretrained_of
from scvi_tahoe.nn import as_said
from scvi_tahoe.pretrained import read_pretrained
from scvi_tahoe.study._data import screen_keys
from scvi_tahoe.study._run_folder import MODEL, checkpoint_path, is_run, read_checkpoint

if TYPE_CHECKING:
    from scvi_tahoe.pretrained import PretrainedModel
    from scvi_tahoe.study._data import RunData
    from scvi_tahoe.study._run_config import StartConfig, TahoeRun

__all__ = ["build_model"]


def build_model(run: TahoeRun, data: RunData) -> TahoeST:
    """Return the model of a run with its starting weights.

    Raises
    ------
    ValueError
        If the data are not as the model needs them, or the weights fit only with decisions that were not made.
    FileNotFoundError
        If there are no such weights.
    """
    TahoeST.setup_anndata(data.train, **screen_keys(data.config))
    run = _with_genes(run, data.train.n_vars)
    if run.start.source is None:
        size: dict[str, Any] = {} if run.model.size is None else {"size": run.model.size}
        return TahoeST(data.train, seed=run.seed, **size, **_options(run))
    start, options = run.start, _options(run)
    common = {"accept": start.accept, "seed": run.seed, **options}
    if is_run(Path(str(start.source))):
        return TahoeST.from_pretrained(_weights_of_run(start), data.train, check_scale=False, **common)
    weights = read_pretrained(
        str(start.source), start.checkpoint, revision=start.revision, accept_license=start.accept_license,
        attention=start.attention, offline=start.offline,
    )  # fmt: skip
    if weights.embeds == (run.model.representation == "embedding"):
        common |= {"representation": None, "batch_encoder": None}
    return TahoeST.from_pretrained(weights, data.train, check_scale=start.check_scale, **common)


def _with_genes(run: TahoeRun, n_genes: int) -> TahoeRun:
    """Fill in the width of a gene decoder that is described without it."""
    decoder = run.model.network.get("gene_decoder")
    if not isinstance(decoder, dict) or "n_genes" in decoder:
        return run
    network = {**run.model.network, "gene_decoder": {**decoder, "n_genes": n_genes}}
    return replace(run, model=replace(run.model, network=network))


def _options(run: TahoeRun) -> dict[str, Any]:
    """What the run says about the model; the rest is left to the package's defaults."""
    model = run.model
    objective = as_said(model.objective)
    said = {"network": model.network, "objective": objective, "set_size": model.set_size, "prior": model.prior}
    return {
        "representation": model.representation,
        "batch_encoder": model.batch_encoder,
        **{name: value for name, value in said.items() if value},
    }


def _weights_of_run(start: StartConfig) -> PretrainedModel:
    """Return the weights of an earlier run; objective and prior are those of the new run."""
    folder = Path(str(start.source))
    path = checkpoint_path(folder, start.checkpoint or "best")
    model = TahoeST.load(folder / MODEL, adata=False)
    state = read_checkpoint(path)["state_dict"]
    model.module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    weights = pretrained_of(model)
    origin = replace(weights.provenance, checkpoint=f"{folder.name}/{path.name}")
    return replace(weights, provenance=origin, extra={"prior": "auto"}, prior=None)
