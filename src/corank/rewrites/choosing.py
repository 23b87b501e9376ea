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
    """The family with that one size in its menu. SiteError for a unit that cannot have it."""

    def menu(unit: Unit) -> Menu:
        whole = family.menu(unit)
        if size not in whole.sizes:
            raise SiteError(
                unit.name, f"{size} is none of the sizes that it can have",
                "Ask for a smaller one, or leave it out of the targets",
            )  # fmt: skip
        cost = sum(bytes_ for _, bytes_ in family.counts(unit, size))
        return Menu([size], [cost], lambda: [whole.errors[whole.sizes.index(size)]])

    return replace(family, menu=menu)


def any_of(families: Mapping[Any, Family]) -> Family:
    """One of `families`, all with one measure, for each unit: sizes are (key, its own), or None.

    The menu holds what is worth having: nothing that costs as much as another and errs more. Where
    errors are unknown, for weights on the meta device and before calibration, it is by cost alone.
    """
    first = next(iter(families.values()))
    needs = frozenset().union(*(family.needs for family in families.values()))

    def menu(unit: Unit) -> Menu:
        found: list[tuple[int, float, Size]] = []
        unknown = any(leaf.is_meta for op in unit.ops for leaf in op.parameters())
        unknown = unknown or (bool(needs) and not all(site.stats for site in unit.sites))
        for key, family in families.items():
            one = family.menu(unit)
            errors = [0.0] * len(one.sizes) if unknown else one.errors
            found += [
                (cost, error, None if size is None else (key, size))
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

    def member(unit: Unit, size: Size) -> tuple[Family, Any]:
        if not isinstance(size, tuple):
            raise SiteError(
                unit.name, f"{size!r} alone is no size of a method that chooses more than a rank",
                "Say how much is to stay by keep= or size=",
            )  # fmt: skip
        return families[size[0]], size[1]

    def build(unit: Unit, size: Size) -> list[Operator]:
        family, own = member(unit, size)
        return family.build(unit, own)

    def counts(unit: Unit, size: Size) -> list[Counts]:
        family, own = member(unit, size)
        return family.counts(unit, own)

    return Family(menu, build, counts, first.measure, needs)
