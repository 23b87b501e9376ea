from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, parts, require_operators
from .skeleton import storable


@storable
@final
class Tucker(Operator):
    """A core tensor times one factor for each of its modes, read as a matrix.

    Row i0 and column (i1, i2, ...), the last running fastest, hold the sum over j0, j1, ... of
    core[j0, j1, ...] f0[i0, j0] f1[i1, j1] ... `core` (r0, r1, ...) has two modes or more; factor
    k is an operator of shape (nk, rk).
    """

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator, core: Tensor) -> None:
        super().__init__()
        require_operators(operators, "Tucker")
        ranks = tuple(op.shape[1] for op in operators)
        if len(ranks) < 2 or ranks != tuple(core.shape) or not core.is_floating_point():
            raise ValueError(
                f"Tucker: a floating point core of shape {tuple(core.shape)} does not fit factors "
                f"{[op.shape for op in operators]}: one for each of at least two modes"
            )
        self.sizes = tuple(op.shape[0] for op in operators)
        self.shape = (self.sizes[0], prod(self.sizes[1:]))
        self.core = leaf(core)
        self.operators = parts(operators)

    def forward(self, x: Tensor) -> Tensor:
        z = x.reshape(-1, *self.sizes[1:])
        for factor in self._inputs():
            z = z.movedim(1, -1) @ factor  # its mode becomes the last
        y = z.flatten(1) @ self.core.flatten(1).mT
        out: Tensor = self.operators[0](y)
        return out.view(*x.shape[:-1], self.shape[0])

    def dense(self) -> Tensor:
        w = self.contracted(0)
        return w.reshape(self.shape)

    def contracted(self, first: int) -> Tensor:
        """The core times the factors of the modes from `first` on, (r0, ..., n_first, ...)."""
        w: Tensor = self.core.movedim(tuple(range(first)), tuple(range(-first, 0)))
        for op in list(self.operators)[first:]:
            w = w.movedim(0, -1) @ op.dense().mT
        return w

    def _inputs(self) -> list[Tensor]:
        return [op.dense() for op in list(self.operators)[1:]]

    def flops(self, tokens: int) -> int:
        sizes, total = list(self.sizes[1:]), 0
        for mode, rank in enumerate(self.core.shape[1:]):
            total += 2 * tokens * prod(sizes) * rank
            sizes[mode] = rank
        making = sum(dense_flops(op) for op in list(self.operators)[1:])
        return total + making + 2 * tokens * self.core.numel() + self.operators[0].flops(tokens)


@dense_flops.register
def _dense_flops(op: Tucker) -> int:
    sizes, total = list(op.core.shape), sum(dense_flops(factor) for factor in op.operators)
    for mode, size in enumerate(op.sizes):
        total += 2 * prod(sizes) * size
        sizes[mode] = size
    return total
