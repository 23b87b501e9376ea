from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..metrics import Measure
from ..operators import Operator
from .menu import Menu
from .rewrite import Counts, Unit


def menu_by_building(
    unit: Unit,
    sizes: Iterable[int],
    counts: Callable[[Unit, int], list[Counts]],
    build: Callable[[Unit, int], list[Operator]],
    measure: Measure,
) -> Menu:
    """Those of the ascending `sizes` that store less than the unit does, and None.

    An error is that of what is built, in `measure`: all sizes are built when errors are asked for.
    """
    costs = {size: sum(bytes_ for _, bytes_ in counts(unit, size)) for size in sizes}
    dense = unit.bytes
    paying = {size: cost for size, cost in costs.items() if cost < dense}

    def errors() -> list[float]:
        return [*(error_of(unit, build(unit, size), measure) for size in paying), 0.0]

    return Menu([*paying, None], [*paying.values(), dense], errors)


def error_of(unit: Unit, made: Sequence[Operator], measure: Measure) -> float:
    """What it costs in `measure` that the unit's operators become these."""
    return sum(
        float(measure(site.stats).loss(op.dense().detach() - now.dense().detach()))
        for site, op, now in zip(unit.sites, unit.ops, made, strict=True)
    )
