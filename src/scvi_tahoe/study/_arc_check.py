"""An arc-state configuration checked: one of our runs, and what arc-state would have made of the file, rule by rule.

Facts about arc-state 0.11.1 and the releases before it, found by running it and by what its runs logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from scvi_tahoe.study._arc_config import ArcConfig, read_arc_config, run_from_arc
from scvi_tahoe.study._finding import LEVELS, Finding, findings_text, found, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scvi_tahoe.study._run_config import TahoeRun

    Rule = Callable[[ArcConfig], Iterator[Finding]]

#: rules in the order of their definition, which is that of findings on one line
_RULES: list[Rule] = []

_CLIP_AT_MOST = 5.0
_BACKBONE = "model.kwargs.transformer_backbone_kwargs"


@dataclass(frozen=True, eq=False)
class ConfigCheck:
    """An arc-state configuration, seen by us.

    Attributes
    ----------
    path
        The file.
    run
        The same as one of our runs.
    findings
        What arc-state ignores or does otherwise, by line.
    """

    path: Path
    run: TahoeRun
    findings: tuple[Finding, ...]

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 1 if something would make the run meaningless, or, if strict, other than its author thinks; else 0."""
        grave = ("error", "warning") if strict else ("error",)
        return int(any(finding.level in grave for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        found = [finding.to_dict() for finding in self.findings]
        return {"path": str(self.path), "run": self.run.to_dict(), "findings": found}

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


def check_config(path: str | Path) -> ConfigCheck:
    """Read a configuration of arc-state, convert it, and say what arc-state ignores or gets wrong in it.

    Parameters
    ----------
    path
        The ``config.yaml`` of a run.

    Returns
    -------
    :class:`ConfigCheck`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a configuration of arc-state.

    Examples
    --------
    >>> from scvi_tahoe.study import check_config
    >>> print(check_config("config.yaml"))  # doctest: +SKIP
    """
    config = read_arc_config(path)
    findings = sorted((f for rule in _RULES for f in rule(config)), key=lambda f: f.line or 0)
    return ConfigCheck(config.path, run_from_arc(config), tuple(findings))


def _rule(function: Rule) -> Rule:
    _RULES.append(function)
    return function


@_rule
def representation(config: ArcConfig) -> Iterator[Finding]:
    """Find embeddings at the input and genes in the score."""
    if config.embedding is None:
        return
    if not config.has_gene_decoder:
        space = config.get("data.kwargs.output_space")
        yield found("no_genes", config.lines, embedding=config.embedding, space=space)
        return
    weight = config.number("model.kwargs.decoder_weight", 1.0)
    graver = {"level": "error", "random": " With weight 0 the decoder stays random."} if weight == 0 else {"random": ""}
    yield found("scored_space", config.lines, embedding=config.embedding, weight=weight, **graver)


@_rule
def named_loss(config: ArcConfig) -> Iterator[Finding]:
    """Find a loss in ``training.loss_fn`` that is not the one trained, ``model.kwargs.loss``."""
    named, trained = config.get("training.loss_fn"), config.get("model.kwargs.loss", "energy")
    if config.has("training.loss_fn") and named != trained:
        yield found("loss_fn", config.lines, named=named, trained=trained)


@_rule
def decoder_weights(config: ArcConfig) -> Iterator[Finding]:
    """Find two weights of the decoder's loss, one of which is read."""
    keys = ("model.kwargs.decoder_loss_weight", "model.kwargs.decoder_weight")
    unread, read = map(config.get, keys)
    if all(map(config.has, keys)) and unread != read:
        yield found("decoder_weight", config.lines, unread=unread, read=read)


@_rule
def clipping(config: ArcConfig) -> Iterator[Finding]:
    """Find a clip that never clips."""
    key = "training.gradient_clip_val"
    value = config.number(key, 10.0)
    if value is not None and value >= _CLIP_AT_MOST:
        said = f"{value:g}" if config.has(key) else f"it is not set, and the default is {value:g}"
        yield found("clipping", config.lines, said=said)


@_rule
def set_length(config: ArcConfig) -> Iterator[Finding]:
    """Find sets of another length than the loader's or the checkpoint's."""
    size, theirs = config.set_size, config.set_size_of_source
    loader = config.number(f"{_BACKBONE}.n_positions", config.number(f"{_BACKBONE}.max_position_embeddings"))
    if size is None:
        return
    if loader is not None and int(loader) != size:
        yield found("set_length", config.lines, size=size, loader=int(loader))
    if theirs is not None and size < theirs:
        yield found("shorter_sets", config.lines, size=size, theirs=theirs)


@_rule
def attention(config: ArcConfig) -> Iterator[Finding]:
    """Find that the flag on which the meaning of a checkpoint depends is missing."""
    llama = str(config.get("model.kwargs.transformer_backbone_key", "llama")).lower() == "llama"
    stated = config.has(f"{_BACKBONE}.bidirectional_attention") or config.get("model.kwargs.mask_attn", False)
    if llama and not stated:
        yield found("bidirectional", config.lines)


@_rule
def start(config: ArcConfig) -> Iterator[Finding]:
    """Explain ``init_from``, and what is carried along with it."""
    source = config.get("model.kwargs.init_from")
    if not source:
        return
    yield found("init_from_resumes", config.lines)
    if str(source).replace("\\", "/").endswith("/last.ckpt"):
        yield found("starts_from_last", config.lines)
    if config.get("model.kwargs.lora.enable", False):
        yield found("lora", config.lines)


@_rule
def frozen_random_head(config: ArcConfig) -> Iterator[Finding]:
    """Find a frozen backbone that takes the output layer along."""
    if not config.get("model.kwargs.freeze_pert_backbone", False):
        return
    all_genes = config.embedding is None and config.get("data.kwargs.output_space") == "all"
    if not config.get("model.kwargs.init_from"):
        yield found("frozen_random", config.lines)
    else:
        yield found("frozen_random_head" if all_genes and config.starts_from_tahoe else "freezing", config.lines)


@_rule
def decoder_without_gradient(config: ArcConfig) -> Iterator[Finding]:
    """Find a decoder that is built and never trained."""
    if config.embedding is None and config.has("model.kwargs.decoder_hidden_dims"):
        yield found("idle_decoder", config.lines)


@_rule
def ignored_keys(config: ArcConfig) -> Iterator[Finding]:
    """Find keys that are stored and never read."""
    for key, entry in table("arc_ignored_keys.yaml").items():
        value = config.get(key)
        off = value in (None, False, 0) and not (key == "training.weight_decay" and value == 0)
        if config.has(key) and not off and value != entry.get("asks_nothing"):
            why = f": {entry['truth']}" if "truth" in entry else ""
            level = "warning" if entry.get("severe") else "note"
            yield found("ignored", config.lines, where=key, level=level, value=value, why=why, ours=entry["ours"])
