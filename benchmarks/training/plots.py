"""The plots of the board of training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.board.plots import COLOURS, draw
from benchmarks.training.entries import Entry
from benchmarks.training.rows import PLAIN

#: Shown in a colour of their own; all others are grey.
NAMED = ("adamw", "galore", "fira", "apollo", "sltrain", "lost", "relora", PLAIN)


def plot_training(entries: Sequence[Entry], quality: str) -> str:
    """Training loss over processor seconds, and what was reached over the bytes held."""
    shown = [e for e in entries if not e.diverged]

    def fill(all_axes: Sequence[Any]) -> None:
        curves, costs = all_axes
        others = [e for e in shown if e.name not in NAMED]
        for entry in others:
            curves.plot(*_curve(entry), color="#cccccc", linewidth=0.7)
        costs.plot(
            [held(e) / 1e6 for e in others], [mean(e.values(quality)) for e in others], ".",
            color="#bbbbbb", markersize=5, label="other methods",
        )  # fmt: skip
        for i, name in enumerate(NAMED):
            for entry in (e for e in shown if e.name == name):
                style = {"marker": "osD^vP*X"[i % 8], "color": COLOURS[i % len(COLOURS)]}
                curves.plot(*_curve(entry), linewidth=1.2, markersize=4, label=name, **style)
                costs.plot([held(entry) / 1e6], [mean(entry.values(quality))], **style)
        curves.set_xlabel("processor seconds in steps")
        curves.set_ylabel("training loss over a fifth of the run")
        curves.set_xscale("log")
        if any(e.name in NAMED for e in shown):
            curves.legend(loc="best", fontsize=7)
        costs.set_xlabel("MB of weights, gradients and state")
        costs.set_ylabel(quality)

    return draw(fill)


def held(entry: Entry) -> float:
    """Bytes of weights, gradients and the optimiser's state."""
    return sum(entry.mean("bytes", part) for part in ("weights", "gradients", "state"))


def _curve(entry: Entry) -> tuple[list[float], list[float]]:
    curve = entry.rows[0]["curve"]
    return [seconds for seconds, _ in curve], [loss for _, loss in curve]
