"""Parameter counts that several papers share, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..models import Site

Count = Callable[[Sequence[Site]], int]


def each(count: Callable[[int, int], int]) -> Count:
    """The sum over sites of `count(out, in)`."""
    return lambda sites: sum(count(*site.shape) for site in sites)


def low_rank(rank: int) -> Count:
    """rank * (out + in) for each site."""
    return each(lambda out, into: rank * (out + into))


def square(rank: int) -> Count:
    """rank * rank for each site."""
    return each(lambda out, into: rank * rank)
