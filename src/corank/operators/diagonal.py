from __future__ import annotations

from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, require_vector
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Diagonal(Operator):
    """A square diagonal matrix. `diagonal` (d,)."""

    def __init__(self, diagonal: Tensor) -> None:
        super().__init__()
        require_vector(diagonal, "Diagonal.diagonal")
        self.shape = (diagonal.shape[0], diagonal.shape[0])
        self.diagonal = leaf(diagonal)

    def forward(self, x: Tensor) -> Tensor:
        # In the dtype of x, so that autocast's half precision is not widened again.
        return x * self.diagonal.to(x.dtype)

    def dense(self) -> Tensor:
        return self.diagonal.diag()

    def flops(self, tokens: int) -> int:
        return tokens * self.shape[0]


@transpose.register
def _transpose(op: Diagonal) -> Operator:
    return op


@dense_flops.register
def _dense_flops(op: Diagonal) -> int:
    return 0
