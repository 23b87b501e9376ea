"""Allocators that minimise the sum of weighted errors under the budget."""

from __future__ import annotations

import heapq
from functools import reduce
from math import gcd, inf

import numpy as np

from .candidate import Candidate, cost, require_affordable

#: Steps of the exact search that still take seconds, not minutes.
MOST_STEPS = 4_000_000_000
#: How much shorter the search is where that is not enough, and costs are rounded anyway.
SHORTER = 10


def greedy(candidates: list[Candidate], budget: int, floor: float = 0.0) -> list[int]:
    """Spend the budget where it lowers the error most per byte stored.

    Each step goes to a corner of a menu's lower convex hull, so the choice is optimal whenever the
    budget ends on a step, and otherwise spends what is left as well as single steps can. No unit
    gets less than `floor`, in [0, 1], of the uniform share.
    """
    require_affordable(candidates, budget)
    share = floor * budget / sum(c.bytes for c in candidates)
    picks = [c.menu.largest_within(share * c.bytes) or 0 for c in candidates]
    rest = budget - cost(candidates, picks)
    costs = [np.array(c.menu.costs, dtype=float) for c in candidates]
    errors = [np.array(c.error) for c in candidates]
    queue: list[tuple[float, int, int]] = []

    def offer(i: int) -> None:
        step = _steepest(costs[i], errors[i], picks[i], rest)
        if step is not None:
            heapq.heappush(queue, (-step[0], i, step[1]))

    for i in range(len(candidates)):
        offer(i)
    while queue:
        _, i, pick = heapq.heappop(queue)
        more = candidates[i].menu.costs[pick] - candidates[i].menu.costs[picks[i]]
        if more <= rest:
            rest, picks[i] = rest - more, pick
        offer(i)
    return picks


def _steepest(
    costs: np.ndarray, errors: np.ndarray, start: int, rest: int
) -> tuple[float, int] | None:
    """(error saved per byte, pick) of the best affordable step up from `start`."""
    stop = int(np.searchsorted(costs, costs[start] + rest, side="right"))
    if stop <= start + 1:
        return None
    slopes = (errors[start] - errors[start + 1 : stop]) / (costs[start + 1 : stop] - costs[start])
    best = int(slopes.argmax())
    return (float(slopes[best]), start + 1 + best) if slopes[best] > 0 else None


def knapsack(candidates: list[Candidate], budget: int) -> list[int]:
    """The exact optimum of the multiple-choice knapsack, by dynamic programming over the budget.

    Where the table would be too large to fill, costs are rounded up to a coarser unit, and the
    optimum is that of these. Raises ValueError where nothing is affordable so.
    """
    require_affordable(candidates, budget)
    options = sum(len(c.menu.costs) for c in candidates)
    unit = reduce(gcd, (k for c in candidates for k in c.menu.costs))
    if budget // unit * options > MOST_STEPS:
        unit = -(-budget * options * SHORTER // MOST_STEPS)
    room = budget // unit
    if sum(-(-c.menu.costs[0] // unit) for c in candidates) > room:
        raise ValueError(
            f"the exact search would take {budget * options:.1e} steps: set round_to to a larger "
            "multiple, or allocate='greedy'"
        )
    best = np.zeros(room + 1)
    chosen = np.zeros((len(candidates), room + 1), dtype=np.int32)
    for i, c in enumerate(candidates):
        new = np.full(room + 1, inf)
        for pick, (price, error) in enumerate(zip(c.menu.costs, c.error, strict=True)):
            k = -(-price // unit)
            if k > room:
                break
            total = best[: room + 1 - k] + error
            better = total < new[k:]
            new[k:][better] = total[better]
            chosen[i, k:][better] = pick
        best = new
    picks, left = [0] * len(candidates), room
    for i in reversed(range(len(candidates))):
        picks[i] = int(chosen[i, left])
        left -= -(-candidates[i].menu.costs[picks[i]] // unit)
    return picks
