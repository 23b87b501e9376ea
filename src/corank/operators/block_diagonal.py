from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf
from .skeleton import storable
from .through import computed_again
from .transpose import adjoint


@storable
@final
class BlockDiagonal(Operator):
    """k blocks along the diagonal, all of one shape (p, q); W is (k p, k q).

    `blocks` (k, p, q); or an operator (k p, q), the blocks below each other, such as their codes,
    and k as `count`. What stands for the blocks is computed again in the backward pass.
    """

    def __init__(self, blocks: Tensor | Operator, count: int | None = None) -> None:
        super().__init__()
        if isinstance(blocks, Operator):
            if count is None or count < 1 or blocks.shape[0] % count:
                raise ValueError(
                    f"BlockDiagonal.count must divide the {blocks.shape[0]} rows of its blocks, "
                    f"got {count}"
                )
            k, p, q = count, blocks.shape[0] // count, blocks.shape[1]
        else:
            if blocks.ndim != 3 or not blocks.is_floating_point():
                kind = f"{blocks.dtype} of shape {tuple(blocks.shape)}"
                raise ValueError(f"BlockDiagonal.blocks must be floats (k, p, q), got {kind}")
            k, p, q = blocks.shape
            if count not in (None, k):
                raise ValueError(f"BlockDiagonal.count is {count}, and there are {k} blocks")
        self.shape, self.count = (k * p, k * q), k
        self.blocks = blocks if isinstance(blocks, Operator) else leaf(blocks)

    def forward(self, x: Tensor) -> Tensor:
        return _apply(self, x)

    def each(self) -> Tensor:
        """The blocks, (k, p, q)."""
        if isinstance(self.blocks, Operator):
            return self.blocks.dense().unflatten(0, (self.count, -1))
        return self.blocks

    def dense(self) -> Tensor:
        return torch.block_diag(*self.each().unbind())

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1] // self.count


def _apply(op: BlockDiagonal, x: Tensor, transposed: bool = False) -> Tensor:
    if not isinstance(op.blocks, Operator):
        return multiply_blocks(x, op.blocks if transposed else op.blocks.mT)

    def product(x: Tensor) -> Tensor:
        blocks = op.each().to(x.dtype)
        return multiply_blocks(x, blocks if transposed else blocks.mT)

    return computed_again(product, x)


def multiply_blocks(x: Tensor, blocks: Tensor) -> Tensor:  # (..., k m) -> (..., k n)
    """x times the block diagonal matrix of `blocks` (k, m, n)."""
    k, m, n = blocks.shape
    rows = x.reshape(-1, k, m).transpose(0, 1)  # (k, tokens, m)
    return (rows @ blocks).transpose(0, 1).reshape(*x.shape[:-1], k * n)


@adjoint.register
def _adjoint(op: BlockDiagonal, x: Tensor) -> Tensor:
    return _apply(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: BlockDiagonal) -> int:
    return dense_flops(op.blocks) if isinstance(op.blocks, Operator) else 0
