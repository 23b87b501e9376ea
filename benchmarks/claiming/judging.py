"""Whether a claim held: a difference of means against what seeds scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from benchmarks.claiming.listed import Claim, Side, frozen
from benchmarks.claiming.runs import GRIDS, SEEDS, Setting

ERRORS, SHARE = 2.0, 0.05
HELD, NOT_HELD, NOISE = "held", "not held", "within noise"
RULE = f"""\
Let d be the first side's mean less the second's, in the direction that the claim calls better, and
e its standard error: the deviation over seeds, pooled over both sides, times sqrt(2 / seeds). A
claim of "better" has held if d > {ERRORS:g} e, has not held if d < -{ERRORS:g} e, and is within
noise between. A claim of "close" allows for a margin m, {SHARE:.0%} of what the second side gains
over the untrained model: it has held if d - {ERRORS:g} e > -m, has not held if
d + {ERRORS:g} e < -m, and is within noise between. The errors allow for seeds only, not for the
grid of rates nor for the choice of tasks; of so many verdicts some are chance."""


@dataclass(frozen=True)
class Figure:
    """One side over its seeds."""

    values: tuple[float, ...]
    trainable: int
    rate: float
    at_edge: bool
    learned: tuple[str, float]  #: how well it does the new task: accuracy, else loss

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def deviation(self) -> float:
        return stdev(self.values)


def verdict(
    first: Sequence[float], second: Sequence[float], higher: bool, start: float | None = None
) -> str:
    """The rule above; `start` is the untrained model's value, given for a claim of "close"."""
    gain = (mean(first) - mean(second)) * (1 if higher else -1)
    pooled = sqrt((stdev(first) ** 2 + stdev(second) ** 2) / 2)
    error = ERRORS * pooled * sqrt(1 / len(first) + 1 / len(second))
    margin = 0.0 if start is None else SHARE * abs(mean(second) - start)
    if gain - error > -margin:
        return HELD
    return NOT_HELD if gain + error < -margin else NOISE


def figure(side: Side, results: dict[str, Any]) -> Figure | None:
    """What was measured of a side; None while seeds are missing."""
    rows = _rows(side.setting, results)
    less = _rows(side.less, results) if side.less else rows
    if len(rows) != len(less) or len(rows) != len(SEEDS[side.setting.task]):
        return None
    values = [row["measures"][side.measure] for row in rows]
    if side.less:
        values = [v - row["measures"][side.measure] for v, row in zip(values, less, strict=True)]
    rate, grid = rows[0]["rate"], GRIDS[side.setting.task]
    name = "accuracy" if "accuracy" in rows[0]["measures"] else "loss"
    learned = name, mean(row["measures"][name] for row in rows)
    edge = rate in (grid[0], grid[-1])
    return Figure(tuple(values), rows[0]["trainable"], rate, edge, learned)


def judge(claim: Claim, results: dict[str, Any]) -> tuple[Figure, Figure, str] | None:
    """Both sides and the verdict; None if something was not measured."""
    first, second = figure(claim.first, results), figure(claim.second, results)
    start = None
    if claim.kind == "close":
        rows = _rows(frozen(claim.second.setting), results)
        if not rows:
            return None
        start = rows[0]["measures"][claim.second.measure]
    if first is None or second is None:
        return None
    return first, second, verdict(first.values, second.values, claim.higher, start)


def _rows(setting: Setting, results: dict[str, Any]) -> list[dict[str, Any]]:
    keys = [f"{setting.key}, seed {seed}" for seed in SEEDS[setting.task]]
    found = {row["key"]: row for row in results.get("runs", [])}
    return [found[key] for key in keys if key in found]
