"""The factors of a low-rank or other product, in few bits."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from ..operators import Operator
from ..quantizers import Quantizer
from .factorwise import factorwise
from .menu import Menu, Size, menu_of_ranks
from .rewrite import Counts, Family, Unit


def quantised_factors(family: Family, quantizer: Quantizer) -> Family:
    """What `family` builds, each of its matrices in few bits: see `factorwise`.

    Sizes are those of `family`; where they are ranks, all that are worth their bytes in this form,
    up to the smaller side of the weight. Errors are those of `family`: what the bits add is not in
    them. Raises ValueError for a family that does not say which matrices it builds.
    """
    if family.matrices is None:
        raise ValueError("this method does not build float matrices that could be quantised")
    matrices = family.matrices

    def build(unit: Unit, size: Any) -> list[Operator]:
        return factorwise(quantizer, Unit(unit.sites, family.build(unit, size)))

    def counts(unit: Unit, size: Any) -> list[Counts]:
        before = family.counts(unit, size)
        if size is None:
            return before
        found = []
        shapes = matrices(unit, size)
        for op, (numel, bytes_), own in zip(unit.ops, before, shapes, strict=True):
            floats = sum(map(prod, own))
            coded = [quantizer.counts(shape, op.dtype) for shape in own]
            found.append((
                numel - floats + sum(n for n, _ in coded),
                bytes_ - floats * op.dtype.itemsize + sum(b for _, b in coded),
            ))  # fmt: skip
        return found

    def menu(unit: Unit) -> Menu:
        plain = family.menu(unit)
        sizes: list[Size] = [size for size in plain.sizes if size is not None]
        if plain.has_spectrum:
            most = min(sum(op.shape[0] for op in unit.ops), unit.ops[0].shape[1])
            sizes = [*range(1, most + 1)]
        costs = {size: sum(b for _, b in counts(unit, size)) for size in sizes}
        paying = {size: cost for size, cost in costs.items() if cost < unit.bytes}
        ranks = [size for size in paying if isinstance(size, int)]
        every = [*paying.values(), unit.bytes]
        if plain.has_spectrum:
            return menu_of_ranks([*ranks, None], every, lambda: plain.spectrum)

        def errors() -> list[float]:
            known = dict(zip(plain.sizes, plain.errors, strict=True))
            return [*(known[size] for size in paying), 0.0]

        return Menu([*paying, None], every, errors)

    return replace(
        family, menu=menu, build=build, counts=counts, needs=family.needs | quantizer.needs,
        choose=None, matrices=None,
    )  # fmt: skip
