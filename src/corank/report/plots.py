"""The plots of a report, each a list of titled SVG elements or none where there is no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .columns import is_adapted
from .figures import COLOURS, draw
from .report import Report, SiteRow
from .sections import OWN, TRAINING

SPEED_PLOT = "Speed"


class Plot(NamedTuple):
    """A heading, a sentence on how to read the plot, and the SVG element."""

    title: str
    about: str
    svg: str


def list_plots(report: Report) -> list[Plot]:
    """Every plot that the report has the data for."""
    plots: list[Plot] = []
    if report.sites:
        plots.append((_trained if is_adapted(report.sites) else _allocation)(report.sites))
    if any(row.error is not None for row in report.sites):
        plots.append(_errors(report.sites))
    if report.sections.get("spectra"):
        plots.append(_spectra(report.sections["spectra"]))
    if (report.sections.get("healing") or {}).get("losses"):
        plots.append(_healing(report.sections["healing"]["losses"]))
    if report.sections.get("training"):
        plots.append(_training(report.sections["training"]))
    if report.sections.get("fidelity"):
        plots += _fidelity(report.sections["fidelity"])
    if report.sections.get("speed"):
        plots.append(_speed(report.sections["speed"]))
    return plots


def capitalise(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def _allocation(rows: Sequence[SiteRow]) -> Plot:
    def fill(axes: Any) -> None:
        _by_role(axes, rows, lambda row: row.keep)
        axes.set_ylabel("fraction kept")
        axes.set_ylim(0, max(1.05, 1.05 * max(row.keep for row in rows)))

    about = "The fraction of its numbers that each site keeps, over the depth of the model."
    return Plot("Allocation", about, draw(fill, "Fraction kept per site over depth"))


def _trained(rows: Sequence[SiteRow]) -> Plot:
    def fill(axes: Any) -> None:
        _by_role(axes, rows, lambda row: row.trainable or 0)
        axes.set_ylabel("numbers that train")
        axes.set_ylim(bottom=0)

    about = "How many numbers train at each site, over the depth of the model; shared ones once."
    return Plot("Trainable", about, draw(fill, "Trainable numbers per site over depth"))


def _errors(rows: Sequence[SiteRow]) -> Plot:
    measured = [row for row in rows if row.error is not None]

    def fill(axes: Any) -> None:
        _by_role(axes, measured, lambda row: row.error or 0.0)
        axes.set_ylabel("relative error")
        axes.set_ylim(bottom=0)

    about = "The error in the method's metric, relative to the weight's own size in it."
    return Plot("Error of each site", about, draw(fill, "Relative error per site over depth"))


def _by_role(axes: Any, rows: Sequence[SiteRow], pick: Callable[[SiteRow], float]) -> None:
    """One line per role over the layers; sites outside the layers are dots after the last."""
    from matplotlib.ticker import MaxNLocator

    last = max((row.layer for row in rows if row.layer is not None), default=-1)
    roles = list(dict.fromkeys(row.role for row in rows))
    spread = 0.5 / max(len(roles), 1)
    for i, role in enumerate(roles):
        points: dict[float, list[float]] = {}
        for row in rows:
            if row.role == role:
                x = float(row.layer) if row.layer is not None else last + 1.0
                points.setdefault(x, []).append(pick(row))
        colour, marker = COLOURS[i % len(COLOURS)], "osD^vP*X"[i % 8]
        if max(map(len, points.values())) == 1:
            style = {"marker": marker, "markersize": 4, "linewidth": 1.2}
            axes.plot(list(points), [v[0] for v in points.values()], color=colour, label=role,
                      linestyle="-" if len(points) > 1 else "none", **style)  # fmt: skip
        else:  # several of a role in one layer, such as experts
            shift = (i - (len(roles) - 1) / 2) * spread
            xs = [x + shift for x, values in points.items() for _ in values]
            ys = [value for values in points.values() for value in values]
            axes.scatter(xs, ys, s=14, color=colour, marker=marker, label=role)
    axes.set_xlabel("layer" if last >= 0 else "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(row.layer is None for row in rows):
        axes.set_xlabel(f"layer ({last + 1}: outside the layers)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _spectra(spectra: Mapping[str, Sequence[float]]) -> Plot:
    def fill(axes: Any) -> None:
        from matplotlib import colormaps

        shades = colormaps["viridis"]
        for i, values in enumerate(spectra.values()):
            largest = max(values, default=0.0) or 1.0
            heights = [value / largest for value in values if value > 0]
            places = [(j + 1) / len(values) for j in range(len(heights))]
            axes.plot(places, heights, color=shades(0.15 + 0.7 * i / max(len(spectra) - 1, 1)),
                      linewidth=0.9)  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.3)
        axes.set_xlabel("index, as a fraction of the rank")
        axes.set_ylabel("singular value / largest")
        names = list(spectra)
        if len(names) > 1:
            axes.set_title(f"dark: {names[0]}, light: {names[-1]}", fontsize=10, loc="left")

    about = "Each line is a site, from the first (dark) to the last (light). Steep is compressible."
    return Plot("Spectra", about, draw(fill, "Singular values per site"))


def _healing(losses: Sequence[float]) -> Plot:
    def fill(axes: Any) -> None:
        axes.plot(range(1, len(losses) + 1), losses, color=COLOURS[0], linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)

    about = "The loss against the original model, on the calibration data, step by step."
    return Plot("Healing", about, draw(fill, "Healing loss over steps"))


def _training(run: Mapping[str, Any]) -> Plot:
    def fill(axes: Any) -> None:
        for key, label, colour in (("losses", "training", 7), ("tuning", "tuning rows", 0)):
            if run[key]:
                steps, losses = zip(*run[key], strict=True)
                axes.plot(steps, losses, color=COLOURS[colour], linewidth=1.2, label=label)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    about = "The mean loss in training since the last point, and that on the rows to tune on."
    return Plot(TRAINING, about, draw(fill, "Losses over steps"))


def _fidelity(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
    plots = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        shown = [row for row in rows if row["measure"] == measure]

        def fill(axes: Any, shown: Sequence[Mapping[str, Any]] = shown) -> None:
            names = [row["domain"] for row in shown]
            if any(row["before"] for row in shown):
                _bars(axes, names, [row["before"] for row in shown], -0.2, COLOURS[7], "before")
                _bars(axes, names, [row["after"] for row in shown], 0.2, COLOURS[0], "after")
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            else:  # a distance from the original: nothing to show before
                _bars(axes, names, [row["after"] for row in shown], 0.0, COLOURS[0], "after")

        label = f"{measure} before and after, per domain"
        svg = draw(fill, label, height=1.1 + 0.55 * len(shown))
        plots.append(Plot(capitalise(measure), shown[0]["unit"], svg))
    return plots


def _bars(
    axes: Any, names: Sequence[str], values: Sequence[float], shift: float, colour: str, label: str
) -> None:
    places = [i + shift for i in range(len(names))]
    height = 0.38 if shift else 0.6
    bars = axes.barh(places, values, height=height, color=colour, label=label)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=10)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)


def _speed(rows: Sequence[Mapping[str, Any]]) -> Plot:
    def fill(axes: Any) -> None:
        names = [f"{row['variant']} ({row['bytes'] / 1e6:.1f} MB)" for row in rows]
        values = [row["tokens_per_second"] for row in rows]
        colours = [COLOURS[0] if row["variant"] == OWN else COLOURS[7] for row in rows]
        bars = axes.barh(names, values, height=0.6, color=colours)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=10)
        axes.invert_yaxis()
        axes.set_xlabel("tokens per second")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)

    about = (
        "More is better. Int8 and int4 are torchao's weight-only quantisation of the dense model."
    )
    svg = draw(fill, "Tokens per second per variant", height=1.2 + 0.4 * len(rows))
    return Plot(SPEED_PLOT, about, svg)
