"""Rows of fine-tuning brought together over seeds, and what they reached beside LoRA's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.board.summary import number
from benchmarks.tuning.measure import FROZEN, FULL
from benchmarks.tuning.rows import SEEDS
from benchmarks.tuning.tasks import Task

OWN = "own"
#: Rows that are there to compare with.
MARKS = (FROZEN, FULL)


@dataclass(frozen=True)
class Entry:
    """One method at one budget: its rows, one for each seed."""

    method: str
    budget: str
    rows: tuple[Mapping[str, Any], ...]

    def values(self, measure: str) -> list[float]:
        """The measure of each seed."""
        return [float(row["measures"][measure]) for row in self.rows]

    def measure(self, name: str) -> float:
        """The mean over seeds."""
        return mean(self.values(name))

    def deviation(self, name: str) -> float:
        """The standard deviation over seeds; 0 where there is one seed, or one did not end."""
        values = self.values(name)
        return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0

    def text(self, name: str) -> str:
        """Mean and deviation; no deviation means one seed."""
        digits = 2 if "perplexity" in name else 3
        value = number(self.measure(name), digits)
        return f"{value} ± {number(self.deviation(name), digits)}" if len(self.rows) > 1 else value

    def mean(self, name: str) -> float | None:
        """The mean over seeds of a number of the rows, None where they have none."""
        found = [float(row[name]) for row in self.rows if name in row]
        return mean(found) if found else None

    @property
    def trainable(self) -> int:
        """How many numbers train."""
        return int(self.rows[0]["trainable"])

    @property
    def parameters(self) -> str:
        """What was asked for beside the defaults."""
        found = self.rows[0].get("parameters", {})
        return ", ".join(f"{k}={v}" for k, v in found.items())


def list_entries(rows: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The measured rows, grouped over seeds, by budget and method."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "measures" in row:
            groups.setdefault((row["budget"], row["method"]), []).append(row)
    return [
        Entry(method, budget, tuple(found)) for (budget, method), found in sorted(groups.items())
    ]


def list_errors(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(row, reason) of those that could not be made, also of those that lack some seeds."""
    found = list(rows)
    made = {row["key"] for row in found}
    errors = []
    for row in found:
        key = row["key"].removesuffix(", error")
        if "error" in row and not all(f"{key}, seed {seed}" in made for seed in SEEDS):
            errors.append((key, str(row["error"])))
    return errors


def higher_is_better(measure: str) -> bool:
    """Accuracies are; perplexities and drifts are not."""
    return measure.startswith("accuracy")


def goodness(entry: Entry, measure: str) -> float:
    """The measure, turned so that more is better; minus infinity where it is no number."""
    value = entry.measure(measure)
    if math.isnan(value):
        return -math.inf
    return value if higher_is_better(measure) else -value


def best_first(entries: Iterable[Entry], measure: str) -> list[Entry]:
    """By the measure, equal ones by name."""
    return sorted(entries, key=lambda e: (-goodness(e, measure), e.budget, e.method))


def find(entries: Iterable[Entry], method: str, budget: str = OWN) -> Entry | None:
    """The entry of that method and budget."""
    return next((e for e in entries if (e.method, e.budget) == (method, budget)), None)


def share_of_gain(entry: Entry, entries: Iterable[Entry], task: Task) -> float | None:
    """What it gained over the frozen model, as a share of what LoRA gained at its defaults.

    None where LoRA or the frozen model was not measured, or LoRA gained nothing.
    """
    found = list(entries)
    lora, frozen = find(found, "lora"), find(found, FROZEN)
    if lora is None or frozen is None:
        return None
    start = goodness(frozen, task.quality)
    gain = goodness(lora, task.quality) - start
    return (goodness(entry, task.quality) - start) / gain if gain > 0 else None


def alike(one: Entry, other: Entry, measure: str) -> bool:
    """Whether the means are no further apart than the deviations together."""
    apart = abs(one.measure(measure) - other.measure(measure))
    return apart <= one.deviation(measure) + other.deviation(measure)
