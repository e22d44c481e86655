"""The model card of a run: what it is, where it came from, under which licence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.model import pretrained_of
from scvi_tahoe.pretrained import licence_notice, model_card

if TYPE_CHECKING:
    from scvi_tahoe import TahoeST
    from scvi_tahoe.study._run_config import TahoeRun

__all__ = ["run_card"]

_RUN = """
## Run

| | |
|---|---|
{rows}

`config.yaml` rebuilds this run: `scvi-tahoe finetune config.yaml`. `metrics.csv` is its log, `loading_report.txt` says
what became of every pretrained tensor, `provenance.json` names releases and data, `scores/` holds the evaluation.
"""


def run_card(run: TahoeRun, model: TahoeST, fingerprint: dict[str, Any]) -> str:
    """Return the text of ``README.md`` in a run's folder."""
    weights = pretrained_of(model)
    trained = model.training_config_ or {}
    data = fingerprint["train"]
    facts = {
        "name": run.name,
        "representation": run.model.representation,
        "prior": run.model.prior,
        "trained on": f"{data['n_cells']:,} cells of {data['n_genes']:,} genes, {fingerprint['n_perturbations']} "
        f"perturbations, {len(fingerprint['contexts'])} contexts (sha256 {fingerprint['sha256'][:12]})",
        "started from": run.start.source or "scratch",
        "best step": f"{trained.get('best_step')} of {run.train.max_steps}, {run.train.monitor} "
        f"{trained.get('best_value')}",
        "seed": str(run.seed),
    }
    text = model_card(weights) + _RUN.format(rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()))
    return text + ("\n" + licence_notice() if weights.provenance.non_commercial else "")
