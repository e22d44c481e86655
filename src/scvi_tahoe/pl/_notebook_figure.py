"""A figure that shows itself as the result of a notebook cell, whether or not pyplot was set up there."""

from __future__ import annotations

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure outside of pyplot, which therefore never stays open, with a picture for notebooks."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)  # gives the figure a renderer, by which text is measured

    def _repr_png_(self) -> bytes:
        """Return the picture; a notebook asks for it."""
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
