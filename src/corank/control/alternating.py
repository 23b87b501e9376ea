"""Two sets of leaves that take turns, each on data of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import cycle, islice
from typing import Any

from .control import Training


def turns(upper: Collection[str], inner: int) -> Callable[[Training], None]:
    """Before a step: only the leaves of one level move. `upper` are last names ("gate").

    Of every inner + 1 steps, `inner` move the others (the lower level) and one the upper level.
    """

    def hold_back(training: Training) -> None:
        above = is_upper(training.step, inner)
        for name, leaf in training.leaves().items():
            if (name.rpartition(".")[2].rpartition("/")[2] in upper) != above:
                leaf.grad = None

    return hold_back


def is_upper(step: int, inner: int) -> bool:
    """Is this step, counted from 0, one of the upper level?"""
    return step % (inner + 1) == inner


def alternate(lower: Iterable[Any], upper: Iterable[Any], inner: int = 1) -> Iterator[Any]:
    """Batches for `turns` without end: `inner` of the lower level's split, one of the upper's.

    Each split starts over when it runs out.
    """
    below, above = cycle(lower), cycle(upper)
    while True:
        yield from islice(below, inner)
        yield from islice(above, 1)
