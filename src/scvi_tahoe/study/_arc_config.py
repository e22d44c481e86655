"""A configuration of arc-state, read for what it says; nothing in it is executed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scvi_tahoe.study._yaml import read_nodes

__all__ = ["ArcConfig", "read_arc_config"]

_ST_NAMES = ("state", "pertsets", "neuralot")
_NO_EMBEDDING = (None, "X_hvg", "")
#: Cells of a set of the released ST-Tahoe weights.
_TAHOE_SET = 512


@dataclass(frozen=True, eq=False)
class ArcConfig:
    """A configuration of arc-state.

    Attributes
    ----------
    path
        The file.
    content
        Its values.
    lines
        Line of every key, by its dotted path.
    """

    path: Path
    content: dict[str, Any]
    lines: dict[str, int]

    def get(self, key: str, default: Any = None) -> Any:
        """A value by its dotted path."""
        value: Any = self.content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    def has(self, key: str) -> bool:
        """Whether a key is in the file."""
        return key in self.lines

    def number(self, key: str, default: float | None = None) -> float | None:
        """A number by its dotted path; text such as ``1e-4``, which YAML reads as text, counts."""
        value = self.get(key, default)
        if isinstance(value, bool) or value is None:
            return default
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.path}, line {self.lines.get(key)}: {key} is {value!r}; a number is needed."
            ) from None

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.get("name") or self.path.stem)

    @property
    def embedding(self) -> str | None:
        """Key of the cell embedding at the input; None for expression."""
        key = self.get("data.kwargs.embed_key")
        return None if key in _NO_EMBEDDING else str(key)

    @property
    def set_size(self) -> int | None:
        """Cells of a set."""
        size = self.number("model.kwargs.cell_set_len")
        return None if size is None else int(size)

    @property
    def starts_from_tahoe(self) -> bool:
        """Whether the run starts from the released ST-Tahoe weights."""
        source = str(self.get("model.kwargs.init_from") or "").replace("\\", "/").lower()
        return any(part in ("st-tahoe", "st_tahoe") for part in source.split("/")[:-1])

    @property
    def set_size_of_source(self) -> int | None:
        """Cells of a set in the training of the weights that the run starts from, where that is known."""
        source = self.get("model.kwargs.init_from")
        if not source:
            return None
        for folder in Path(str(source)).parents[:2]:
            if (folder / "config.yaml").is_file():
                size = ArcConfig(folder, *read_nodes(folder / "config.yaml")).set_size
                if size is not None:
                    return size
        return _TAHOE_SET if self.starts_from_tahoe else None

    @property
    def has_gene_decoder(self) -> bool:
        """Whether genes come from a decoder that receives gradients.

        It does where cells are embeddings and the output space is genes; see ``gene_decoder_bool``.
        """
        wants_genes = self.get("data.kwargs.output_space", "gene") in ("all", "gene")
        return (
            self.embedding is not None and wants_genes and self.get("model.kwargs.gene_decoder_bool", True) is not False
        )


def read_arc_config(path: str | Path) -> ArcConfig:
    """Read a configuration of arc-state.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML, not of arc-state, or of another model than State Transition.
    """
    path = Path(path)
    content, lines = read_nodes(path)
    config = ArcConfig(path, content, lines)
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(config.get("data.kwargs"), dict):
        ours = " It is a run of ours; see it with: scvi-tahoe finetune --dry-run" if "start" in content else ""
        raise ValueError(
            f"{path} is not a configuration of arc-state, which has the sections data.kwargs, model and training.{ours}"
        )
    if not isinstance(config.get("model.kwargs"), dict) or not isinstance(config.get("training"), dict):
        raise ValueError(f"{path} lacks model.kwargs or training; give the resolved config.yaml of a run folder.")
    name = str(model.get("name", "state"))
    if name.lower() not in _ST_NAMES:
        raise ValueError(f"{path} is of the model {name!r}; State Transition models ({', '.join(_ST_NAMES)}) are read.")
    return config
