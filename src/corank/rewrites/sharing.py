"""One weight in the place of several."""

from __future__ import annotations

import torch

from ..operators import Dense, Operator
from ..operators.operator import leaf
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit


def shared_mean() -> Family:
    """All weights of a unit -> their mean, the nearest single matrix to them; 0 is its only size.

    A unit of one weight stays as it is, and so does one that stores no more than the mean would.
    """
    return Family(_menu, _build, _counts)


def _menu(unit: Unit) -> Menu:
    def errors() -> list[float]:
        weights = torch.stack([wide(op) for op in unit.ops])
        return [float((weights - weights.mean(0)).square().sum()), 0.0]

    shared = sum(bytes_ for _, bytes_ in _counts(unit, 0))
    if shared >= unit.bytes:
        return Menu([None], [unit.bytes], lambda: [0.0])
    return Menu([0, None], [shared, unit.bytes], errors)


def _build(unit: Unit, size: int) -> list[Operator]:
    if len(unit.ops) == 1:
        return list(unit.ops)
    mean = torch.stack([wide(op) for op in unit.ops]).mean(0)
    shared = leaf(mean.to(unit.ops[0].dtype))
    return [Dense(shared) for _ in unit.ops]


def _counts(unit: Unit, size: int | None) -> list[Counts]:
    if size is None or len(unit.ops) == 1:
        return [(op.numel(), op.bytes()) for op in unit.ops]
    first, *others = unit.sites
    return [(first.numel, first.numel * unit.ops[0].dtype.itemsize), *((0, 0) for _ in others)]
