"""What a checkpoint carries beside weights: the step, the optimizer, its rate, its schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scvi_tahoe.study._finding import Finding
from scvi_tahoe.study._run_folder import read_checkpoint

__all__ = ["checkpoint_facts", "checkpoint_findings"]


def checkpoint_facts(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint holds, ours or arc-state's, without running code of it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    content = read_checkpoint(path)
    states = content.get("optimizer_states") or []
    groups = [group for state in states for group in state.get("param_groups", [])]
    callbacks = content.get("callbacks") or {}
    best = next((c for c in callbacks.values() if isinstance(c, dict) and "best_step" in c), {})
    arc_best = next((c for c in callbacks.values() if isinstance(c, dict) and "best_model_score" in c), {})
    score = best.get("best_value", arc_best.get("best_model_score"))
    tensors = content["state_dict"]
    return {
        "step": _integer(content.get("global_step")),
        "epoch": _integer(content.get("epoch")),
        "n_tensors": len(tensors),
        "n_parameters": int(sum(t.numel() for t in tensors.values() if hasattr(t, "numel"))),
        "has_optimizer": bool(groups),
        "rates": [float(g["lr"]) for g in groups if "lr" in g],
        "weight_decay": [float(g["weight_decay"]) for g in groups if "weight_decay" in g],
        "has_schedule": bool(content.get("lr_schedulers")),
        "best_value": None if score is None else float(score),
        "best_step": best.get("best_step"),
        "ours": "plan_config" in content,
    }


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


def checkpoint_findings(facts: dict[str, Any]) -> list[Finding]:
    """What to know before a checkpoint is used."""
    findings = [
        Finding(
            rule="weights", level="note", where="state_dict",
            message=f"{facts['n_tensors']} tensors, {facts['n_parameters']:,} numbers, of step {facts['step']}.",
        )
    ]  # fmt: skip
    if facts["has_optimizer"]:
        rates = ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(facts["rates"]))
        findings.append(
            Finding(
                # ours is resumed only where that is asked for
                rule="carries_optimizer", level="note" if facts["ours"] else "warning", where="optimizer_states",
                message=f"it carries the state of an optimizer with the rate {rates}: a program that resumes from it "
                "goes on with that rate, whatever its configuration says.",
                instead="start.source takes weights only; resume_from, and nothing else, restores an optimizer.",
            )
        )  # fmt: skip
        if not facts["has_schedule"]:
            findings.append(
                Finding(
                    rule="no_schedule", level="warning", where="lr_schedulers",
                    message="no schedule was attached to the optimizer: the rate was constant.",
                    instead="warm-up and cosine, which train() attaches unless told otherwise.",
                )
            )  # fmt: skip
        if facts["weight_decay"] and not any(facts["weight_decay"]):
            findings.append(
                Finding(
                    rule="no_weight_decay", level="warning", where="optimizer_states",
                    message="weights did not decay: the optimizer has weight_decay 0.",
                    instead="AdamW with train.plan.weight_decay.",
                )
            )  # fmt: skip
    if facts["best_step"] is not None and facts["step"] is not None and facts["best_step"] < facts["step"]:
        findings.append(
            Finding(
                rule="not_the_best", level="warning", where="callbacks",
                message=f"the best validation so far, {facts['best_value']:.4g}, was at step "
                f"{facts['best_step']}; this is "
                f"step {facts['step']}.",
                instead="use best.ckpt.",
            )
        )  # fmt: skip
    return findings
