from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import sqrt

from ..metrics import Measure
from ..operators import Operator
from .menu import Menu
from .rewrite import Counts, Unit

#: (unit, what its operators become) -> what that costs.
Error = Callable[[Unit, Sequence[Operator]], float]


def menu_by_building(
    unit: Unit,
    sizes: Iterable[int],
    counts: Callable[[Unit, int], list[Counts]],
    build: Callable[[Unit, int], list[Operator]],
    error: Error,
) -> Menu:
    """Those of the ascending `sizes` that store less than the unit does, and None.

    An error is that of what is built: all sizes are built when errors are asked for.
    """
    costs = {size: sum(bytes_ for _, bytes_ in counts(unit, size)) for size in sizes}
    dense = unit.bytes
    paying = {size: cost for size, cost in costs.items() if cost < dense}

    def errors() -> list[float]:
        return [*(error(unit, build(unit, size)) for size in paying), 0.0]

    return Menu([*paying, None], [*paying.values(), dense], errors)


def error_in(measure: Measure) -> Error:
    """`error_of` in that measure."""
    return partial(error_of, measure=measure)


def relative_distance(unit: Unit, made: Sequence[Operator]) -> float:
    """||W - W'|| / ||W|| of the unit's weights together, not squared, whatever they read."""
    old, new = ([op.dense().detach().double() for op in ops] for ops in (unit.ops, made))
    lost = sum(float((a - b).square().sum()) for a, b in zip(old, new, strict=True))
    whole = sum(float(a.square().sum()) for a in old)
    return sqrt(lost / whole) if lost else 0.0


def error_of(unit: Unit, made: Sequence[Operator], measure: Measure) -> float:
    """What it costs in `measure` that the unit's operators become these."""
    return sum(
        float(measure(site.stats).loss(op.dense().detach() - now.dense().detach()))
        for site, op, now in zip(unit.sites, unit.ops, made, strict=True)
    )
