"""Drawing with matplotlib into SVG that stands inside a page and takes its colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

#: Colours that tell roles and variants apart on light and dark paper alike (Okabe and Ito).
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7ee7", "#999999",
)  # fmt: skip
_INK, _RULE = "#010203", "#040506"  # stand-ins, replaced by the page's own colours
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "corank",
    "font.family": "sans-serif",
    "font.size": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def draw(fill: Callable[[Any], None], label: str, width: float = 9.0, height: float = 3.2) -> str:
    """The SVG element of a figure of `width` x `height` inches that `fill(axes)` draws on.

    label: what is to be seen, for those who cannot see it; also makes the ids unique on a page.
    The same content gives the same text, whenever and wherever it is drawn.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        fill(figure.add_subplot())
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _embed(buffer.getvalue(), label)


def _embed(text: str, label: str) -> str:
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", label.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = svg.replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
