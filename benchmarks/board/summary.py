"""Rows of results, brought together over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One method, budget and allocator: means over its seeds, and the seeds' own values."""

    method: str
    keep: float | None
    allocate: str
    healed: bool
    rows: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """The method, and whether it was healed."""
        return f"{self.method} + healing" if self.healed else self.method

    def values(self, measure: str) -> list[float]:
        """A measure of each seed that has it."""
        return [r["measures"][measure] for r in self.rows if measure in r["measures"]]

    def measure(self, name: str) -> float | None:
        """The mean over seeds, None where it was not measured."""
        values = self.values(name)
        return mean(values) if values else None

    def mean(self, name: str) -> float:
        """The mean over seeds of a number of the rows."""
        return mean(float(row[name]) for row in self.rows)

    def seconds(self, part: str) -> float:
        """The mean over seeds of the processor seconds of a part of the work."""
        return mean(float(row["cpu_seconds"][part]) for row in self.rows)


def list_entries(rows: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The measured rows, grouped over seeds, in a fixed order."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "measures" in row and "method" in row:
            key = (row["method"], row["keep"], row["allocate"], row["healed"])
            groups.setdefault(key, []).append(row)
    entries = [Entry(*key, tuple(found)) for key, found in groups.items()]
    return sorted(entries, key=lambda e: (e.keep or 2.0, e.method, e.healed, e.allocate))


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; the first two columns to the left, numbers to the right."""
    marks = [":--" if i < 2 else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, marks, *rows])


def link(title: str, arxiv: str) -> str:
    """A paper's short title, linked where it has a number on arXiv."""
    short = title.partition(":")[0]
    return f"[{short}](https://arxiv.org/abs/{arxiv})" if arxiv else short


def number(value: float | None, digits: int = 3) -> str:
    """A figure with so many decimals, or four digits where they are some and it is large."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 100 or not digits else f"{value:.4g}"
