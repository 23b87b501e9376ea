"""A weight's own tensor as a sum of outer products."""

from __future__ import annotations

from math import prod

from ..errors import SiteError
from ..linalg import polyadic
from ..metrics import euclidean
from ..operators import Dense, Operator, Polyadic
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers.
STEPS = 16


def polyadic_sum() -> Family:
    """W, in its own modes, -> a sum of r outer products (CP) with one factor for each mode.

    Of r (filters + channels + taps of each axis) numbers for a convolution. Found by alternating
    least squares; errors by building.
    """
    return Family(_menu, _build, _counts)


def _menu(unit: Unit) -> Menu:
    (site,) = unit.sites
    most = prod(site.modes) // sum(site.modes)  # where it stores as much as the weight
    sizes = sorted({max(1, round(most * i / STEPS)) for i in range(1, STEPS + 1)})
    return menu_by_building(unit, sizes, _counts, _build, error_in(euclidean()))


def _build(unit: Unit, rank: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    if rank < 1:
        raise SiteError(site.where, f"rank {rank} is less than 1", "Ask for a higher one")
    factors = polyadic(wide(op).reshape(site.modes), rank, generator=site.generator())
    return [Polyadic(*(Dense(factor.to(op.dtype)) for factor in factors))]


def _counts(unit: Unit, rank: int | None) -> list[Counts]:
    (site,), (op,) = unit.sites, unit.ops
    if rank is None:
        return [(op.numel(), op.bytes())]
    numel = rank * sum(site.modes)
    return [(numel, numel * op.dtype.itemsize)]
