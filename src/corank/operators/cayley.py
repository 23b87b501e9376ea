from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .block_diagonal import multiply_blocks
from .operator import Operator, leaf
from .precision import without_autocast
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Cayley(Operator):
    """Rotations (I - Q) (I + Q)^-1 along the diagonal, Q = (P - P.T) / 2 for each block P.

    `blocks` (k, d, d) of free numbers; W is (k d, k d), orthogonal, and the identity at zero.
    """

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        square = blocks.ndim == 3 and blocks.shape[1] == blocks.shape[2]
        if not square or not blocks.is_floating_point():
            kind = f"{blocks.dtype} of shape {tuple(blocks.shape)}"
            raise ValueError(f"Cayley.blocks must be floating point (k, d, d), got {kind}")
        side = blocks.shape[0] * blocks.shape[1]
        self.shape = (side, side)
        self.blocks = leaf(blocks)

    def forward(self, x: Tensor) -> Tensor:
        return multiply_blocks(x, self._rotations().mT.to(x.dtype))

    def dense(self) -> Tensor:
        return torch.block_diag(*self._rotations().to(self.blocks.dtype).unbind())

    def flops(self, tokens: int) -> int:
        k, d, _ = self.blocks.shape
        return k * (3 * d * d + 8 * d**3 // 3) + 2 * tokens * k * d * d

    def _rotations(self) -> Tensor:  # (k, d, d)
        # Half precision would lose the orthogonality, under autocast too.
        with without_autocast(self.blocks.device):
            free = self.blocks.to(torch.promote_types(self.blocks.dtype, torch.float32))
            skew = (free - free.mT) / 2
            eye = torch.eye(free.shape[1], dtype=free.dtype, device=free.device)
            return torch.linalg.solve(eye + skew, eye - skew)  # the two factors commute


@adjoint.register
def _adjoint(op: Cayley, x: Tensor) -> Tensor:
    return multiply_blocks(x, op._rotations().to(x.dtype))
