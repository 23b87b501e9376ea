"""Two weights of transposed shapes as one matrix: its rows for one, its columns for the other."""

from __future__ import annotations

from functools import partial

from torch import nn

from ..linalg import shared_matrix
from ..metrics import Measure
from ..operators import Dense, Operator, transpose
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit


def transposed_sharing(measure: Measure) -> Family:
    """W1, W2 -> W, W^T, with the least sum of both errors in `measure`, which weighs inputs.

    For units of two sites; any other stays as it is. There is one size, 0.
    """
    build = partial(_build, measure)

    def menu(unit: Unit) -> Menu:
        sizes = [0] if len(unit.sites) == 2 else []
        return menu_by_building(unit, sizes, _counts, build, error_in(measure))

    return Family(menu, build, _counts, measure, measure.needs)


def _build(measure: Measure, unit: Unit, size: int) -> list[Operator]:
    first, second = unit.ops
    right, left = (measure(site.stats).right for site in unit.sites)
    shared = shared_matrix(wide(first), right, wide(second).mT.contiguous(), left).to(first.dtype)
    leaf = nn.Parameter(shared.contiguous(), requires_grad=False)
    return [Dense(leaf), transpose(Dense(leaf))]


def _counts(unit: Unit, size: int | None) -> list[Counts]:
    counted = [(op.numel(), op.bytes()) for op in unit.ops]
    return counted if size is None else [counted[0], (0, 0)]
