"""An arc-state configuration checked: one of our runs, and what arc-state would have made of the file, rule by rule.

Facts about arc-state 0.11.1 and the releases before it, found by running it and by what its runs logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scvi_tahoe._arguments import checked
from scvi_tahoe.study._arc_config import BACKBONE, ArcConfig, read_arc_config, run_from_arc
from scvi_tahoe.study._arc_run_file import write_run_file
from scvi_tahoe.study._finding import LEVELS, Finding, findings_text, found, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_tahoe.study._run_config import TahoeRun

    Found = Iterator[tuple[str, dict[str, Any]]]  # entries of findings.yaml, and what they are filled with

_CLIP_AT_MOST = 5.0
_MISMATCH = "scored_space"


@dataclass(frozen=True, eq=False)
class ConfigCheck:
    """An arc-state configuration: ``run`` is the same as one of ours, ``findings`` is what arc-state does otherwise.

    Findings are in the order of the lines of the file.
    """

    path: Path
    run: TahoeRun
    findings: tuple[Finding, ...]
    config: ArcConfig

    @checked()
    def write(self, path: str | Path) -> TahoeRun:
        """Write the run as a file that starts, see ``scvi-tahoe check --write``, and return it.

        Raises
        ------
        ValueError
            If the file exists.
        """
        return write_run_file(self.run, self.config, Path(path))

    @checked()
    def exit_code(self, *, strict: bool = False, allow_mismatch: bool = False) -> int:
        """Return 1 if something would make the run meaningless, or, if strict, other than its author thinks; else 0.

        A run that is scored in another space than it trains in is the former, unless ``allow_mismatch`` makes a warning
        of it.
        """
        levels = ["warning" if allow_mismatch and f.rule == _MISMATCH else f.level for f in self.findings]
        return int("error" in levels or (strict and "warning" in levels))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"path": str(self.path), "run": self.run.to_dict(), "findings": [f.to_dict() for f in self.findings]}

    def __str__(self) -> str:
        shown = {
            key: {k: v for k, v in part.items() if v not in (None, [], {})} if isinstance(part, dict) else part
            for key, part in self.run.to_dict().items()
            if part is not None
        }
        text = yaml.safe_dump(shown, sort_keys=False, width=100)
        numbers = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        counts = ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in numbers.items() if n)
        return f"{self.path} as a run of ours:\n\n{text}\n{counts or 'nothing to say'}\n{findings_text(self.findings)}"


@checked()
def check_config(path: str | Path) -> ConfigCheck:
    """Read a configuration of arc-state, convert it, and say what arc-state ignores or gets wrong in it.

    Parameters
    ----------
    path
        The ``config.yaml`` of a run.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a configuration of arc-state.
    """
    config = read_arc_config(path)
    findings = [found(rule, config.lines, **values) for find in _RULES for rule, values in find(config)]
    findings.sort(key=lambda finding: finding.line or 0)
    return ConfigCheck(config.path, run_from_arc(config), tuple(findings), config)


def _scored_space(config: ArcConfig) -> Found:
    embedding = config.embedding
    if embedding is not None and not config.has_gene_decoder:
        yield "no_genes", {"embedding": embedding, "space": config.get("data.kwargs.output_space")}
    elif embedding is not None:
        weight = config.number("model.kwargs.decoder_weight", 1.0)
        yield _MISMATCH if weight else "random_decoder", {"embedding": embedding, "weight": weight}
    elif config.has("model.kwargs.decoder_hidden_dims"):
        yield "idle_decoder", {}


def _losses(config: ArcConfig) -> Found:
    named, trained = config.get("training.loss_fn"), config.get("model.kwargs.loss", "energy")
    if config.has("training.loss_fn") and named != trained:
        yield "loss_fn", {"named": named, "trained": trained}
    keys = ("model.kwargs.decoder_loss_weight", "model.kwargs.decoder_weight")
    unread, read = map(config.get, keys)
    if all(map(config.has, keys)) and unread != read:
        yield "decoder_weight", {"unread": unread, "read": read}
    clip = config.number("training.gradient_clip_val", 10.0)
    if clip is not None and clip >= _CLIP_AT_MOST:
        said = "" if config.has("training.gradient_clip_val") else "it is not set, and the default is "
        yield "clipping", {"said": f"{said}{clip:g}"}


def _sets_and_attention(config: ArcConfig) -> Found:
    size, theirs = config.set_size, config.set_size_of_source
    loader = config.number(f"{BACKBONE}.n_positions", config.number(f"{BACKBONE}.max_position_embeddings"))
    if size is not None and loader is not None and int(loader) != size:
        yield "set_length", {"size": size, "loader": int(loader)}
    if size is not None and theirs is not None and size < theirs:
        known = config.set_size_is_known
        said = (
            f"were trained with {theirs}" if known else f"were probably trained with {theirs}, which is not published"
        )
        yield "shorter_sets", {"size": size, "said": said}
    llama = str(config.get("model.kwargs.transformer_backbone_key", "llama")).lower() == "llama"
    stated = config.has(f"{BACKBONE}.bidirectional_attention") or config.get("model.kwargs.mask_attn", False)
    if llama and not stated:  # the meaning of a checkpoint depends on the flag
        yield "bidirectional", {}


def _start(config: ArcConfig) -> Found:
    source = config.get("model.kwargs.init_from")
    if source:
        yield "init_from_resumes", {}
    if source and str(source).replace("\\", "/").endswith("/last.ckpt"):
        yield "starts_from_last", {}
    if source and config.get("model.kwargs.lora.enable", False):
        yield "lora", {}
    if config.get("model.kwargs.freeze_pert_backbone", False):
        all_genes = config.embedding is None and config.get("data.kwargs.output_space") == "all"
        loaded = "frozen_random_head" if all_genes and config.starts_from_tahoe else "freezing"
        yield loaded if source else "frozen_random", {}


def _ignored_keys(config: ArcConfig) -> Found:
    for key, entry in table("arc_ignored_keys.yaml").items():
        value = config.get(key)
        off = value in (None, False, 0) and not (key == "training.weight_decay" and value == 0)
        if config.has(key) and not off and value != entry.get("asks_nothing"):
            why = f": {entry['truth']}" if "truth" in entry else ""
            level = "warning" if entry.get("severe") else "note"
            yield "ignored", {"where": key, "level": level, "value": value, "why": why, "ours": entry["ours"]}


#: in the order of findings on one line
_RULES = (_scored_space, _losses, _sets_and_attention, _start, _ignored_keys)
