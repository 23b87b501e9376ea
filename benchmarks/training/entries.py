"""Rows of training brought together over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.board.summary import number


@dataclass(frozen=True)
class Entry:
    """One method on one task: its rows, one for each seed."""

    name: str
    kind: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def diverged(self) -> bool:
        """Whether any seed did."""
        return any("diverged" in row for row in self.rows)

    def values(self, measure: str) -> list[float]:
        """The measure of each seed; NaN where it diverged."""
        return [float(row.get("measures", {}).get(measure, math.nan)) for row in self.rows]

    def text(self, measure: str) -> str:
        """Mean and deviation; no deviation means one seed."""
        if self.diverged:
            return "diverged"
        values, digits = self.values(measure), 1 if measure == "perplexity" else 3
        scatter = f" ± {number(stdev(values), digits)}" if len(values) > 1 else ""
        return number(mean(values), digits) + scatter

    def mean(self, *names: str) -> float:
        """The mean over seeds of a number of the rows, or of one within: ("bytes", "state")."""
        return mean(_within(row, names) for row in self.rows)


def _within(row: Mapping[str, Any], names: tuple[str, ...]) -> float:
    found: Any = row
    for name in names:
        found = found[name]
    return float(found)


def list_entries(rows: Iterable[Mapping[str, Any]], quality: str, higher: bool) -> list[Entry]:
    """The rows' entries, the best first, those that diverged last."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "seed" in row:
            groups.setdefault((row["name"], row["kind"]), []).append(row)
    entries = [Entry(*key, tuple(found)) for key, found in groups.items()]

    def rank(entry: Entry) -> tuple[bool, float]:
        reached = 0.0 if entry.diverged else mean(entry.values(quality))
        return entry.diverged, -reached if higher else reached

    return sorted(entries, key=rank)
