"""The exact allocation among sizes that lose no more than others do."""

from __future__ import annotations

from statistics import mean

from .candidate import Candidate
from .search import knapsack

#: What the bound may be, over the mean error at the uniform share; the first that fits is taken.
BOUNDS = [1 + i / 10 for i in range(11)]


def rocket(candidates: list[Candidate], budget: int) -> list[int]:
    """`knapsack`, but no unit's error is above a bound that all have in common.

    The bound is the mean of the errors at the uniform share, times the least of 1.0, 1.1, ..., 2.0
    for which the budget can be met; there is none where it never can. So no unit is given up for
    the others (ROCKET, its published code).
    """
    share = budget / sum(c.bytes for c in candidates)
    at_share = [
        c.error[c.menu.largest_within(share * c.bytes) or 0]
        for c in candidates
        if len(c.menu.sizes) > 1
    ]
    allowed = [list(range(len(c.menu.sizes))) for c in candidates]
    for bound in BOUNDS if at_share else ():
        most = bound * mean(at_share)
        within = [
            [i for i, error in enumerate(c.error) if error <= most] or [len(c.error) - 1]
            for c in candidates
        ]
        if sum(c.menu.costs[own[0]] for c, own in zip(candidates, within, strict=True)) <= budget:
            allowed = within
            break
    bounded = [
        Candidate(c.unit, c.menu.at(own), c.weight)
        for c, own in zip(candidates, allowed, strict=True)
    ]
    picks = knapsack(bounded, budget)
    return [own[pick] for own, pick in zip(allowed, picks, strict=True)]
