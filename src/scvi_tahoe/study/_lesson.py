"""Did the study show what it was made to show?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Lesson", "judge"]


@dataclass(frozen=True)
class Lesson:
    """Expected order of scores, and what was found.

    Attributes
    ----------
    groups
        Names of rounds, the group with the lowest expected scores first.
    exceptions
        One sentence for each expectation that the scores contradict.
    unknown
        Rounds without a score.
    """

    groups: tuple[tuple[str, ...], ...]
    exceptions: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every expectation was met."""
        return bool(self.groups) and not self.exceptions and not self.unknown

    def __str__(self) -> str:
        if not self.groups:
            return "The study expects no order of its scores."
        expected = " < ".join("{" + ", ".join(group) + "}" if len(group) > 1 else group[0] for group in self.groups)
        if self.unknown:
            return f"Expected {expected}; there is no score of {', '.join(self.unknown)}, so it cannot be said."
        if self.holds:
            return f"The data show the lesson: {expected}."
        return f"The data do not show the lesson {expected}: {'; '.join(self.exceptions)}."


def judge(groups: Sequence[Sequence[str]], overall: Mapping[str, float]) -> Lesson:
    """Compare scores with the order that is expected of them.

    Parameters
    ----------
    groups
        Names of rounds, the group with the lowest expected scores first.
    overall
        Overall score by round.
    """
    names = [name for group in groups for name in group]
    unknown = tuple(name for name in names if name not in overall)
    exceptions = []
    if not unknown:
        for i, lower in enumerate(groups):
            for higher in groups[i + 1 :]:
                exceptions += [
                    f"{b} ({overall[b]:.1f}) is not above {a} ({overall[a]:.1f})"
                    for a in lower
                    for b in higher
                    if overall[b] <= overall[a]
                ]
    return Lesson(tuple(tuple(group) for group in groups), tuple(exceptions), unknown)
