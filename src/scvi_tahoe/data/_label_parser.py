"""Perturbation labels: which perturbations they combine, and at which dose each was given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

#: Between a perturbation and its dose in a label: ``"Trametinib@10"``.
DOSE_MARK = "@"


class Component(NamedTuple):
    """One perturbation of a label, and its dose if it has one."""

    name: str
    dose: float | None = None

    def __str__(self) -> str:
        return self.name if self.dose is None else dose_label(self.name, self.dose)


def dose_label(perturbation: str, dose: float) -> str:
    """Return the label of a perturbation at a dose, as :meth:`~scvi_tahoe.TahoeST.predict` takes it.

    Parameters
    ----------
    perturbation
        Its label.
    dose
        In the unit of the training data, above 0.

    Examples
    --------
    >>> dose_label("Trametinib", 0.5)
    'Trametinib@0.5'

    Raises
    ------
    ValueError
        If the dose is not a positive finite number.
    """
    return f"{perturbation}{DOSE_MARK}{_verified_dose(dose, perturbation):.10g}"


def _verified_dose(dose: object, label: str) -> float:
    try:
        value = float(dose)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the dose {dose!r} of {label!r} is not a positive number; a dose is above 0 and finite.")
    return value


@dataclass(frozen=True, kw_only=True)
class LabelParser:
    """Reads the labels of a screen.

    Attributes
    ----------
    control
        The label of control cells; in a combination it is left out.
    combination_separator
        Text between the perturbations of a combination, ``"+"`` in ``"KLF1+MAP2K6"``; None without combinations.
    has_dose
        Whether every perturbation of a label carries its dose, ``"Trametinib@10"``.
    """

    control: str
    combination_separator: str | None = None
    has_dose: bool = False

    @property
    def composes(self) -> bool:
        """Whether labels are more than names."""
        return self.combination_separator is not None or self.has_dose

    def components(self, label: str) -> tuple[Component, ...]:
        """Perturbations of a label, sorted; the control's own label has itself as its only component.

        An empty component, or a dose that is missing or not positive, is a ValueError.
        """
        texts = self.split(label)
        if not all(text.strip() for text in texts):
            raise ValueError(
                f"perturbation {label!r} has an empty part between {self.combination_separator!r}; name every part of "
                "a combination."
            )
        components = [self._component(text, label) for text in texts]
        return tuple(sorted(component for component in components if component.name != self.control)) or (
            Component(self.control),
        )

    def is_control(self, label: str) -> bool:
        """Whether a label means the control: its own, ``"control+control"``, or at a dose."""
        return self.components(label) == (Component(self.control),)

    def repeated(self, label: str) -> str | None:
        """Find a perturbation that a label names more than once, at any dose; None if there is none."""
        names = [component.name for component in self.components(label)]
        return next((name for name, after in pairwise(names) if name == after), None)

    def split(self, label: str) -> list[str]:
        """Components of a label as they are written, control included."""
        return [label] if self.combination_separator is None else label.split(self.combination_separator)

    def join(self, components: tuple[Component, ...]) -> str:
        """Write the label of these components."""
        return (self.combination_separator or "").join(map(str, components))

    def spelling(self, label: str) -> str:
        """One spelling of all labels that mean the same: ``"B+A"`` and ``"A+control+B"`` become ``"A+B"``."""
        return self.join(self.components(label))

    def without_doses(self, label: str) -> str:
        """Name the perturbations of a label without their doses, in one spelling: ``"B@2+A@1"`` becomes ``"A+B"``."""
        return self.join(tuple(Component(component.name) for component in self.components(label)))

    def _component(self, text: str, label: str) -> Component:
        if not self.has_dose or text == self.control:
            return Component(text)
        name, mark, dose = text.rpartition(DOSE_MARK)
        if mark and name == self.control:
            return Component(name)  # a dose of the control has no meaning
        if not mark or not name:
            raise ValueError(
                f"perturbation {label!r} needs a dose for {text!r}, e.g. {text + DOSE_MARK + '10'!r}: the model was "
                "trained with doses."
            )
        return Component(name, _verified_dose(dose, name))
