from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class BlockDiagonal(Operator):
    """k blocks along the diagonal, all of one shape. `blocks` (k, p, q); W is (k p, k q)."""

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        if blocks.ndim != 3 or not blocks.is_floating_point():
            kind = f"{blocks.dtype} of shape {tuple(blocks.shape)}"
            raise ValueError(f"BlockDiagonal.blocks must be floating point (k, p, q), got {kind}")
        k, p, q = blocks.shape
        self.shape = (k * p, k * q)
        self.blocks = leaf(blocks)

    def forward(self, x: Tensor) -> Tensor:
        return multiply_blocks(x, self.blocks.mT)

    def dense(self) -> Tensor:
        return torch.block_diag(*self.blocks.unbind())

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.blocks.numel()


def multiply_blocks(x: Tensor, blocks: Tensor) -> Tensor:  # (..., k m) -> (..., k n)
    """x times the block diagonal matrix of `blocks` (k, m, n)."""
    k, m, n = blocks.shape
    rows = x.reshape(-1, k, m).transpose(0, 1)  # (k, tokens, m)
    return (rows @ blocks).transpose(0, 1).reshape(*x.shape[:-1], k * n)


@adjoint.register
def _adjoint(op: BlockDiagonal, x: Tensor) -> Tensor:
    return multiply_blocks(x, op.blocks)


@dense_flops.register
def _dense_flops(op: BlockDiagonal) -> int:
    return 0
