"""Matrices as tensor trains (matrix product operators), alone or with one core in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import bond_sizes, common_center, tensor_train
from ..metrics import euclidean
from ..models import Site
from ..operators import Dense, Operator, TensorTrain
from ..operators.operator import leaf
from .building import error_in, menu_by_building
from .decomposed import wide
from .factoring import central_digits
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers.
STEPS = 8


def train_cores(
    op: Operator, site: Site, rank: int, rows: Sequence[int], columns: Sequence[int]
) -> list[Tensor]:
    """The cores of the weight's truncated train, as a `TensorTrain` of these digits takes them."""
    cores = tensor_train(_tensor(wide(op), rows, columns), rank, site.generator())
    return [_matrix(core, j) for core, j in zip(cores, columns, strict=True)]


def common_trains(order: int, steps: int) -> Family:
    """W_i -> tensor trains of `order` cores, the middle one of which all sites of a unit share.

    The size is the largest bond. Each side is cut into factors as even as its divisors allow, the
    largest in the middle. Found by `steps` rounds of alternating least squares, errors by building.
    """
    build = partial(_build, order, steps)
    counts = partial(_counts, order)

    def menu(unit: Unit) -> Menu:
        most = max(bond_sizes(_modes(order, unit), unit.sites[0].numel))
        sizes = sorted({max(1, round(most * i / STEPS)) for i in range(1, STEPS + 1)})
        return menu_by_building(unit, sizes, counts, build, error_in(euclidean()))

    return Family(menu, build, counts)


def _build(order: int, steps: int, unit: Unit, rank: int) -> list[Operator]:
    if rank < 1:
        raise SiteError(unit.name, f"rank {rank} is less than 1", "Ask for a higher one")
    rows, columns = _digits(order, unit)
    tensors = torch.stack([_tensor(wide(op), rows, columns) for op in unit.ops])
    cores = common_center(tensors, rank, steps, unit.sites[0].generator())
    shared = leaf(_matrix(cores[order // 2][0], columns[order // 2]).to(unit.ops[0].dtype))
    made: list[Operator] = []
    for i, op in enumerate(unit.ops):
        parts: list[Operator] = [
            Dense(shared if k == order // 2 else _matrix(core[i], j).to(op.dtype))
            for k, (core, j) in enumerate(zip(cores, columns, strict=True))
        ]
        made.append(TensorTrain(*parts, rows=rows, columns=columns))
    return made


def _counts(order: int, unit: Unit, rank: int | None) -> list[Counts]:
    if rank is None:
        return [(op.numel(), op.bytes()) for op in unit.ops]
    modes = _modes(order, unit)
    sizes = bond_sizes(modes, rank)
    cores = [left * n * right for left, n, right in zip(sizes, modes, sizes[1:], strict=False)]
    shared = cores[order // 2]
    found = []
    for i, op in enumerate(unit.ops):
        numel = sum(cores) - (shared if i else 0)
        found.append((numel, numel * op.dtype.itemsize))
    return found


def _digits(order: int, unit: Unit) -> tuple[tuple[int, ...], tuple[int, ...]]:
    out, into = unit.sites[0].shape
    return central_digits(out, order), central_digits(into, order)


def _modes(order: int, unit: Unit) -> tuple[int, ...]:
    return tuple(i * j for i, j in zip(*_digits(order, unit), strict=True))


def _tensor(matrix: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """A matrix with one mode for each pair of a row's and a column's digit."""
    order = len(rows)
    paired = [axis for k in range(order) for axis in (k, order + k)]
    modes = [i * j for i, j in zip(rows, columns, strict=True)]
    return matrix.reshape(*rows, *columns).permute(paired).reshape(modes)


def _matrix(core: Tensor, column: int) -> Tensor:  # (left, row column, right)
    return core.reshape(-1, column * core.shape[-1])
