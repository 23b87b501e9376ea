from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf
from .skeleton import storable
from .through import apply_dense


@storable
@final
class TileAffine(Operator):
    """Every square tile W_ij of W becomes W_ij + W_ij M_i + M_i. `blocks` (out / r, r, r): M_i.

    It is applied through the matrix, which is made again in the backward pass.
    """

    def __init__(self, operator: Operator, blocks: Tensor) -> None:
        super().__init__()
        out, into = operator.shape
        if blocks.ndim != 3 or not blocks.is_floating_point():
            kind = f"{blocks.dtype} of shape {tuple(blocks.shape)}"
            raise ValueError(f"TileAffine.blocks must be floating point (k, r, r), got {kind}")
        k, r, columns = blocks.shape
        if columns != r or k * r != out or into % r:
            raise ValueError(
                f"TileAffine: blocks {tuple(blocks.shape)} do not tile a weight of {(out, into)}"
            )
        self.shape = operator.shape
        self.operator, self.blocks = operator, leaf(blocks)

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        weight, (k, r, _) = self.operator.dense(), self.blocks.shape
        dtype = torch.promote_types(weight.dtype, self.blocks.dtype)
        weight, blocks = weight.to(dtype), self.blocks.to(dtype)
        tiles = weight.reshape(k, r, -1, r)  # (i, row, j, column)
        # A stack over i of (r * j, r) matrices, so each M_i meets its tiles in one product.
        met = (tiles.flatten(1, 2) @ blocks).view_as(tiles)
        return (tiles + met + blocks[:, :, None]).view(self.shape)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@dense_flops.register
def _dense_flops(op: TileAffine) -> int:
    products = 2 * op.blocks.shape[1] + 2
    return dense_flops(op.operator) + products * op.shape[0] * op.shape[1]
