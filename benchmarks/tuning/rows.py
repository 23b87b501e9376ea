"""Which rows the board of adapters has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import Parameter
from typing import Any

import corank
from benchmarks.tuning.measure import FROZEN, FULL
from benchmarks.tuning.tasks import Task
from corank.models import Site, find_sites

GRID = (2e-4, 1e-3, 5e-3, 2.5e-2)
SEEDS = (0, 1, 2)
#: Trainable numbers of a LoRA of these ranks, which others are matched to from below.
BUDGETS = (2, 8)
#: Measured first, and on every task.
MAIN = (
    "lora", "rslora", "dora", "pissa", "olora", "lora_plus", "lora_fa", "lora_xs", "vera",
    "adalora", "milora", "hra", "fourierft", "bone", "mora", "fedpara", "svft", "s2ft",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A method with parameters; `budget` is "own" for its defaults, else LoRA's rank matched."""

    method: str
    budget: str
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.method}, {self.budget}"


def list_rows(task: Task) -> Iterator[Row]:
    """Every row of a task, the most wanted first."""
    yield Row(FROZEN, "own")
    yield Row(FULL, "own")
    keys = [m.key for m in corank.methods("adapt") if "setting" not in m.laws]
    ordered = [k for k in MAIN if k in keys] + [k for k in keys if k not in MAIN]
    for key in ordered:
        yield Row(key, "own")
    for rank in BUDGETS:
        for key in ordered:
            row = matched(task, key, rank)
            if row is not None:
                yield row


@cache
def sites_of(task: Task) -> list[Site]:
    """The weights that a task's adapters stand beside."""
    return find_sites(task.load(), task.targets)


def matched(task: Task, key: str, rank: int) -> Row | None:
    """The method at the largest rank that trains no more than LoRA does at `rank`."""
    method = corank.registry.find_method(key, "adapt")
    required = [n for n, default in method.parameters.items() if default is Parameter.empty]
    if "rank" not in method.parameters or set(required) - {"rank"}:
        return None
    sites = sites_of(task)
    budget = corank.registry.find_method("lora").recipe({"rank": rank}).count(sites)
    largest = min(min(site.shape) for site in sites)
    best = None
    for tried in range(1, largest + 1):
        try:
            if method.recipe({"rank": tried}).count(sites) > budget:
                break
        except ValueError:
            continue
        best = tried
    if best is None:
        return None
    return Row(key, f"LoRA r{rank}", (("rank", best),))
