from __future__ import annotations

from functools import partial

from ..operators import Dense, Operator
from .menu import Menu
from .rewrite import Family, Rewrite, Unit


def compensation(first: Rewrite, second: Family) -> Family:
    """W -> first(W) + second(W - first(W)): a low-rank repair of another rewrite's error.

    Where a site has an original beside its operator, the operator is what an earlier rewrite
    made of it, so `first` is left out and W is the original's weight.
    """
    return Family(
        menu=partial(_menu, first, second),
        build=partial(_build, first, second),
        measure=second.measure,
        needs=first.needs | second.needs,
    )


def _split(first: Rewrite, unit: Unit) -> tuple[list[Operator], Unit]:
    coarse, lost = [], []
    for site, op in zip(unit.sites, unit.ops, strict=True):
        original = site.pool.get("originals", {}).get(site.name)
        base = first(op, site) if original is None else op
        wanted = (original or op).dense().detach()
        coarse.append(base)
        lost.append(Dense(wanted - base.dense().detach().to(wanted.dtype)))
    return coarse, Unit(unit.sites, lost)


def _menu(first: Rewrite, second: Family, unit: Unit) -> Menu:
    coarse, lost = _split(first, unit)
    menu = second.menu(lost)
    menu = menu.at([i for i, size in enumerate(menu.sizes) if size is not None])
    base = sum(op.bytes() for op in coarse)
    return Menu(menu.sizes, [base + c for c in menu.costs], lambda: menu.errors,
                lambda: menu.spectrum)  # fmt: skip


def _build(first: Rewrite, second: Family, unit: Unit, size: int) -> list[Operator]:
    coarse, lost = _split(first, unit)
    repairs = second.build(lost, size)
    return [base + repair for base, repair in zip(coarse, repairs, strict=True)]
