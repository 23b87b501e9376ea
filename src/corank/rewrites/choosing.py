"""Families put together, so that one allocator chooses among all of their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import SiteError
from ..operators import Operator
from .menu import Menu, Size
from .rewrite import Counts, Family, Unit


def only(family: Family, size: Size) -> Family:
    """The family with that one size in its menu."""

    def menu(unit: Unit) -> Menu:
        whole = family.menu(unit)
        cost = sum(bytes_ for _, bytes_ in family.counts(unit, size))
        return Menu([size], [cost], lambda: [whole.errors[whole.sizes.index(size)]])

    return replace(family, menu=menu)


def any_of(families: Mapping[Any, Family]) -> Family:
    """One of `families`, all with one measure, for each unit: sizes are (key, its own size).

    None, which leaves a unit as it is, stays None. The menu holds what is worth having: nothing
    that costs as much as another and errs more. For weights on the meta device, whose errors are
    unknown, it is by cost alone.
    """
    first = next(iter(families.values()))

    def menu(unit: Unit) -> Menu:
        found: list[tuple[int, float, Size]] = []
        unknown = any(leaf.is_meta for op in unit.ops for leaf in op.parameters())
        for key, family in families.items():
            one = family.menu(unit)
            errors = [0.0] * len(one.sizes) if unknown else one.errors
            found += [
                (cost, error, size if size is None else (key, size))
                for cost, error, size in zip(one.costs, errors, one.sizes, strict=True)
            ]
        found.sort(key=lambda entry: entry[:2])
        kept: list[tuple[int, float, Size]] = []
        for entry in found:
            dearer = not kept or entry[0] > kept[-1][0]
            if dearer and (unknown or not kept or entry[1] < kept[-1][1]):
                kept.append(entry)
        costs, errors, sizes = (list(column) for column in zip(*kept, strict=True))
        return Menu(sizes, costs, lambda: errors)

    def build(unit: Unit, size: Size) -> list[Operator]:
        if not isinstance(size, tuple):
            raise SiteError(
                unit.name, f"a rank of {size} does not say which of {list(families)} it is of",
                "Give a budget, keep= or size=, or leave it out of the targets",
            )  # fmt: skip
        return families[size[0]].build(unit, size[1])

    def counts(unit: Unit, size: tuple[Size, Size] | None) -> list[Counts]:
        if size is None:
            return first.counts(unit, None)
        return families[size[0]].counts(unit, size[1])

    needs = frozenset().union(*(family.needs for family in families.values()))
    return Family(menu, build, counts, first.measure, needs)
