"""Allocators that cut every unit's spectrum by one common threshold."""

from __future__ import annotations

from collections.abc import Callable

from .candidate import Candidate, cost, require_affordable


def energy(candidates: list[Candidate], budget: int) -> list[int]:
    """Every unit keeps the same part of its squared spectrum, the largest part that fits."""

    def within(lost: float) -> list[int]:
        return [
            next(i for i, e in enumerate(c.menu.errors) if e <= lost * c.menu.total)
            if c.menu.errors[-1] <= lost * c.menu.total
            else len(c.menu.errors) - 1
            for c in candidates
        ]

    return _tightest(candidates, budget, within)


def heavy_tail(candidates: list[Candidate], budget: int) -> list[int]:
    """Keep what exceeds one threshold on singular values scaled to [0, 1] within each unit.

    (s - min) / (max - min) > t, with the smallest t that meets the budget (WeLore, 2407.11239).
    """

    def above(threshold: float) -> list[int]:
        picks = []
        for c in candidates:
            values = c.menu.spectrum.sqrt()
            low, high = values[-1], values[0]
            rank = max(int((values - low > threshold * (high - low)).sum()), 1)
            ranks = [size if isinstance(size, int) else rank + 1 for size in c.menu.sizes]
            picks.append(next((i for i, r in enumerate(ranks) if r >= rank), len(ranks) - 1))
        return picks

    return _tightest(candidates, budget, above)


def _tightest(
    candidates: list[Candidate], budget: int, picks: Callable[[float], list[int]]
) -> list[int]:
    """The picks of the smallest threshold in [0, 1] that meets the budget, by bisection."""
    require_affordable(candidates, budget)
    low, high = 0.0, 1.0
    if cost(candidates, picks(low)) <= budget:
        return picks(low)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(candidates, picks(middle)) <= budget else (middle, high)
    return picks(high)
