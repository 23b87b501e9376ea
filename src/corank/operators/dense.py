from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Dense(Operator):
    """A stored matrix. `weight` (out, in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        require_matrix(weight, "Dense.weight")
        self.shape = (weight.shape[0], weight.shape[1])
        self.weight = leaf(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def dense(self) -> Tensor:
        return self.weight

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.shape[0] * self.shape[1]


@adjoint.register
def _adjoint(op: Dense, x: Tensor) -> Tensor:
    return x @ op.weight


@dense_flops.register
def _dense_flops(op: Dense) -> int:
    return 0
