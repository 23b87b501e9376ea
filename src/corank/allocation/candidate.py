from __future__ import annotations

from dataclasses import dataclass

from ..rewrites import Menu, Unit


@dataclass
class Candidate:
    """A unit that may be rewritten, what it may become, and how much its error matters."""

    unit: Unit
    menu: Menu
    weight: float = 1.0

    @property
    def bytes(self) -> int:
        """What its share is of: what the unit stores now, or its largest choice where that is more.

        A repair beside a weight stores more than the weight alone.
        """
        return max(self.unit.bytes, self.menu.costs[-1])

    @property
    def error(self) -> list[float]:
        """The menu's errors times the weight."""
        return [self.weight * e for e in self.menu.errors]


def cost(candidates: list[Candidate], picks: list[int]) -> int:
    """Bytes stored after taking these picks."""
    return sum(c.menu.costs[p] for c, p in zip(candidates, picks, strict=True))


def require_affordable(candidates: list[Candidate], budget: float) -> None:
    """Refuse a budget below the smallest choices together."""
    least = sum(c.menu.costs[0] for c in candidates)
    if least > budget:
        raise ValueError(
            f"the budget of {int(budget):,} bytes is below the smallest reachable, {least:,}: "
            "raise keep or size, or target fewer sites"
        )
