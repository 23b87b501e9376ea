from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, parts, require_operators
from .skeleton import storable


@storable
@final
class Polyadic(Operator):
    """A sum of outer products (CP), one factor for each mode, read as a matrix.

    Row i0 and column (i1, i2, ...), the last running fastest, hold the sum over j of
    f0[i0, j] f1[i1, j] f2[i2, j] ... Factor k is an operator of shape (nk, r); there are two or
    more.
    """

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        require_operators(operators, "Polyadic")
        shapes = [op.shape for op in operators]
        if len(shapes) < 2 or len({rank for _, rank in shapes}) > 1:
            raise ValueError(
                f"Polyadic: factors {shapes} must be two or more, with as many columns each"
            )
        self.sizes = tuple(size for size, _ in shapes)
        self.rank = shapes[0][1]
        self.shape = (self.sizes[0], prod(self.sizes[1:]))
        self.operators = parts(operators)

    def forward(self, x: Tensor) -> Tensor:
        first, second, *others = self.operators
        z = x.reshape(-1, *self.sizes[1:]).movedim(1, -1) @ second.dense()
        for factor in others:
            z = torch.einsum("bi...r,ir->b...r", z, factor.dense())
        out: Tensor = first(z)
        return out.view(*x.shape[:-1], self.shape[0])

    def dense(self) -> Tensor:
        first, *others = (op.dense() for op in self.operators)
        return first @ reduce(_row_products, others).mT

    def flops(self, tokens: int) -> int:
        contracted = sum(prod(self.sizes[mode:]) for mode in range(1, len(self.sizes)))
        making = sum(dense_flops(op) for op in list(self.operators)[1:])
        return making + 2 * tokens * self.rank * contracted + self.operators[0].flops(tokens)


def _row_products(one: Tensor, two: Tensor) -> Tensor:  # (m, r), (n, r) -> (m n, r)
    return (one[:, None] * two).flatten(0, 1)


@dense_flops.register
def _dense_flops(op: Polyadic) -> int:
    joined = sum(prod(op.sizes[1 : mode + 1]) for mode in range(2, len(op.sizes)))
    making = sum(dense_flops(factor) for factor in op.operators)
    return making + op.rank * joined + 2 * op.rank * prod(op.sizes)
