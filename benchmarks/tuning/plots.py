"""The plots of the board of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.board.plots import COLOURS, draw
from benchmarks.tuning.measure import FROZEN, FULL
from benchmarks.tuning.summary import MARKS, OWN, Entry, find
from benchmarks.tuning.tasks import Task

#: Shown in a colour of their own, budgets joined by a line; all others are grey.
NAMED = ("lora", "dora", "pissa", "adalora", "vera", "fourierft", "hra", "lora_xs")


def plot_task(entries: Sequence[Entry], task: Task) -> str:
    """Quality over trainable numbers, and forgetting over quality, a point for each row."""
    shown = [e for e in entries if e.method not in MARKS]

    def fill(all_axes: Sequence[Any]) -> None:
        from matplotlib.ticker import MaxNLocator, NullFormatter

        costs, forgets = all_axes
        for axes, x in ((costs, "trainable"), (forgets, task.quality)):
            y = task.quality if axes is costs else task.forgetting
            others = [e for e in shown if e.method not in NAMED]
            axes.plot(
                [_at(e, x) for e in others], [e.measure(y) for e in others], ".", color="#bbbbbb",
                markersize=5, label="other methods",
            )  # fmt: skip
            for i, name in enumerate(NAMED):
                own = sorted((e for e in shown if e.method == name), key=lambda e: e.trainable)
                if not own:
                    continue
                style = {"marker": "osD^vP*X"[i % 8], "color": COLOURS[i % len(COLOURS)]}
                axes.plot(
                    [_at(e, x) for e in own], [e.measure(y) for e in own], label=name,
                    linewidth=0.8 if axes is costs else 0, markersize=5, **style,
                )  # fmt: skip
            axes.set_ylabel(y)
        for name, style in ((FROZEN, ":"), (FULL, "--")):
            if mark := find(entries, name, OWN):
                costs.axhline(
                    mark.measure(task.quality), color="#888888", linewidth=0.9, linestyle=style,
                    label=name,
                )  # fmt: skip
        costs.set_xscale("log")
        costs.xaxis.set_minor_formatter(NullFormatter())
        costs.set_xlabel("trainable numbers")
        forgets.xaxis.set_major_locator(MaxNLocator(5))
        forgets.set_xlabel(task.quality)
        costs.legend(loc="best", fontsize=7)

    return draw(fill)


def _at(entry: Entry, what: str) -> float:
    return float(entry.trainable) if what == "trainable" else entry.measure(what)
