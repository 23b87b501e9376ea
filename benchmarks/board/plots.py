"""The plots of the board's page: standalone SVG files, the same text for the same results."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7ee7", "#777777")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "corank",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
}


def draw(fill: Callable[[Sequence[Any]], None], columns: int = 2) -> str:
    """An SVG document of `columns` axes side by side that `fill` draws on."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.6), layout="constrained", facecolor="white")
        canvas = FigureCanvasSVG(figure)
        fill([figure.add_subplot(1, columns, i + 1) for i in range(columns)])
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def plot_keeps(
    groups: dict[str, dict[float, dict[str, float]]], measure: str, dense: dict[str, float]
) -> str:
    """A measure over the fraction kept, a line per method, in and out of domain side by side.

    groups: method -> keep -> measures. Perplexities, far apart, are on a logarithmic axis.
    """

    def fill(all_axes: Sequence[Any]) -> None:
        from matplotlib.ticker import LogLocator

        for axes, domain in zip(all_axes, ("in", "out"), strict=True):
            name = f"{domain}: {measure}"
            for i, (method, points) in enumerate(groups.items()):
                keeps = sorted(k for k in points if name in points[k])
                values = [points[k][name] for k in keeps]
                style = {"marker": "osD^vP*X"[i % 8], "color": COLOURS[i % len(COLOURS)]}
                axes.plot(keeps, values, label=method, linewidth=1.3, markersize=4, **style)
            if name in dense:
                axes.axhline(dense[name], color="#aaaaaa", linewidth=0.8, linestyle="--")
            axes.set_xlabel("fraction of the targeted parameters kept")
            axes.set_xticks(sorted({keep for points in groups.values() for keep in points}))
            axes.set_title(f"{measure}, {domain} of domain" if domain == "out" else
                           f"{measure}, in domain", fontsize=10)  # fmt: skip
            if measure == "perplexity":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
                axes.yaxis.set_minor_formatter("{x:g}")
        all_axes[-1].legend(loc="best", fontsize=8)

    return draw(fill)


def plot_costs(points: dict[str, tuple[float, float]], measure: str) -> str:
    """A measure over the seconds that each method took: method -> (seconds, value)."""

    def fill(all_axes: Sequence[Any]) -> None:
        axes = all_axes[0]
        for i, (method, (seconds, value)) in enumerate(points.items()):
            style = {"marker": "osD^vP*X"[i % 8], "color": COLOURS[i % len(COLOURS)]}
            axes.plot([max(seconds, 0.1)], [value], linestyle="none", label=method, **style)
        axes.set_xscale("log")
        axes.set_xlabel("processor seconds, calibration to healing")
        axes.set_ylabel(measure)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)

    return draw(fill, columns=1)
