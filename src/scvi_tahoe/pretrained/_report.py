"""The report of a loading: what became of every tensor, and how labels matched. A table and a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["loaded", "resized", "new", "dropped", "refused"]
_EXAMPLES = 5


@dataclass(frozen=True)
class TensorRecord:
    """What became of one tensor."""

    #: Name in our network; the name in the source for tensors that have no place in it.
    tensor: str
    #: One of:
    #:
    #: * ``'loaded'`` - every number comes from the source
    #: * ``'resized'`` - some rows or columns come from the source, others are new
    #: * ``'new'`` - initialised, nothing comes from the source
    #: * ``'dropped'`` - in the source, of no use in the network
    #: * ``'refused'`` - in the source, left out by a decision of the user
    status: Status
    #: Shapes on both sides, or ``None``.
    source_shape: tuple[int, ...] | None = None
    target_shape: tuple[int, ...] | None = None
    #: Why, as text.
    detail: str = ""


@dataclass(frozen=True)
class LabelMatch:
    """How the labels of an axis matched."""

    #: ``'genes'``, ``'decoder genes'``, ``'perturbations'`` or ``'batches'``.
    axis: str
    #: Labels on both sides; their weights were moved to the target's place.
    matched: tuple[str, ...] = ()
    #: Labels of the target that the source lacks; initialised.
    missing: tuple[str, ...] = ()
    #: Labels of the source that the target lacks; left out.
    surplus: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadingReport:
    """What was loaded from pretrained weights, and what was not."""

    #: One entry a tensor.
    records: tuple[TensorRecord, ...]
    #: One entry a labelled axis.
    matches: tuple[LabelMatch, ...] = ()
    #: Remarks a user should read.
    notes: tuple[str, ...] = ()
    #: The user's decisions that the loading made use of.
    decisions: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoadingReport:
        """Return the report whose plain values were saved with a model."""
        records = tuple(TensorRecord(**record) for record in values["records"])
        matches = tuple(LabelMatch(**match) for match in values["matches"])
        return cls(records, matches, tuple(values["notes"]), tuple(values["decisions"]))

    @property
    def loaded(self) -> frozenset[str]:
        """Tensors of the network all of whose numbers come from the source: the only ones that may be frozen."""
        return frozenset(record.tensor for record in self.records if record.status == "loaded")

    @property
    def must_train(self) -> frozenset[str]:
        """Tensors of the network with new numbers in them: freezing one would freeze random weights."""
        return frozenset(record.tensor for record in self.records if record.status in ("resized", "new"))

    @property
    def table(self) -> pd.DataFrame:
        """One row per tensor: status, shapes, detail."""
        import pandas as pd

        columns = ["tensor", "status", "source_shape", "target_shape", "detail"]
        rows = [[getattr(record, column) for column in columns] for record in self.records]
        return pd.DataFrame(rows, columns=columns)

    @property
    def label_table(self) -> pd.DataFrame:
        """One row per labelled axis: numbers of matched, missing and surplus labels, and names of the latter two."""
        import pandas as pd

        columns = ["axis", "matched", "missing", "surplus", "missing_names", "surplus_names"]
        names = [(m, list(m.missing), list(m.surplus)) for m in self.matches]
        rows = [[m.axis, len(m.matched), len(missing), len(surplus), missing, surplus] for m, missing, surplus in names]
        return pd.DataFrame(rows, columns=columns)

    def text(self) -> str:
        """Return a summary for people: counts, everything that was not simply loaded, labels, remarks."""
        lines = [", ".join(f"{count} {status}" for status, count in self.counts().items() if count)]
        for record in self.records:
            if record.status != "loaded":
                shapes = " -> ".join(str(s) for s in (record.source_shape, record.target_shape) if s is not None)
                lines.append(f"  {record.status:8} {record.tensor} {shapes} {record.detail}".rstrip())
        for match in self.matches:
            lines.append(
                f"{match.axis}: {len(match.matched)} matched, {len(match.missing)} new{_examples(match.missing)}, "
                f"{len(match.surplus)} left out{_examples(match.surplus)}"
            )
        lines += [f"decided by the user: {name}" for name in self.decisions]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def counts(self) -> dict[str, int]:
        """Return the number of tensors of every status."""
        statuses = [record.status for record in self.records]
        return {status: statuses.count(status) for status in get_args(Status)}


def _examples(names: tuple[str, ...]) -> str:
    shown = [*names[:_EXAMPLES], *(["..."] if len(names) > _EXAMPLES else [])]
    return f" ({', '.join(shown)})" if names else ""
