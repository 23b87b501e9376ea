"""Budgets to choices: menus of (cost, error), one choice for each unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..errors import unknown
from .bounded import rocket
from .candidate import Candidate, cost
from .integer import integer_program
from .search import greedy, knapsack
from .shares import block_influence, by_share, lorap, svd_llm_v2, uniform, uniql
from .thresholds import energy, heavy_tail

Allocator = Callable[[list[Candidate], int], list[int]]

ALLOCATORS: dict[str, Allocator] = {
    "uniform": uniform,
    "energy": energy,
    "greedy": greedy,
    "greedy_floor": partial(greedy, floor=0.25),
    "knapsack": knapsack,
    "ilp": integer_program,
    "svd_llm_v2": svd_llm_v2,
    "heavy_tail": heavy_tail,
    "block_influence": block_influence,
    "uniql": uniql,
    "lorap": lorap,
    "rocket": rocket,
    "relative": greedy,
    "sensitivity": greedy,
}

#: Those that run the model: for what a unit's error costs, or for the influence of its block.
MEASURED = frozenset({"sensitivity", "block_influence", "uniql"})


def find_allocator(name: str | Allocator) -> Allocator:
    """The allocator of that name, or the callable itself."""
    if callable(name):
        return name
    if name not in ALLOCATORS:
        raise unknown("allocator", name, ALLOCATORS)
    return ALLOCATORS[name]


__all__ = [
    "ALLOCATORS",
    "MEASURED",
    "Allocator",
    "Candidate",
    "block_influence",
    "by_share",
    "cost",
    "energy",
    "find_allocator",
    "greedy",
    "heavy_tail",
    "integer_program",
    "knapsack",
    "lorap",
    "svd_llm_v2",
    "uniform",
    "uniql",
]
