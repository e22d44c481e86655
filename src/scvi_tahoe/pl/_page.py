"""Reports as one HTML file that needs nothing else, neither files nor a network: templates with figures inside."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page(template: str, **values: Any) -> str:
    """Return the page of a template in ``pl/pages``, whose values are escaped.

    Templates extend ``page.html.jinja``, and have the macros ``table(head, rows)``, ``findings(items)`` and
    ``image(source, alt)`` of ``parts.html.jinja`` and the filter ``data_uri`` for figures.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("scvi_tahoe.pl", "pages"), autoescape=select_autoescape(("html.jinja",)),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters["data_uri"] = data_uri
    return found


def data_uri(figure: Figure | Path | None) -> str | None:
    """Return a figure, or a PNG file, as text that an image can be read from; None if there is no such file."""
    if figure is None:
        return None
    if isinstance(figure, Path):
        content = figure.read_bytes() if figure.exists() else None
    else:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        content = buffer.getvalue()
    return None if content is None else f"data:image/png;base64,{base64.b64encode(content).decode()}"
