from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .low_rank import LowRank
from .operator import Operator, is_linear, require_operators
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Scaled(Operator):
    """scale * W, a fixed number times an operator.

    The number multiplies where the vectors are shortest: between the factors of a LowRank, else
    at the narrower end. It is a Python number, so it never widens a half precision product.
    """

    def __init__(self, operator: Operator, scale: float) -> None:
        super().__init__()
        require_operators((operator,), "Scaled")
        self.shape = operator.shape
        self.operator, self.scale = operator, scale
        self._first = operator.shape[1] < operator.shape[0] and is_linear(operator)

    def forward(self, x: Tensor) -> Tensor:
        op = self.operator
        if isinstance(op, LowRank):
            return F.linear(self.scale * op.latent(x), op.b)
        y: Tensor = op(self.scale * x) if self._first else self.scale * op(x)
        return y

    def dense(self) -> Tensor:
        if isinstance(self.operator, LowRank):
            b, a = self.operator.factors()
            return b @ (self.scale * a)
        return self.scale * self.operator.dense()

    def flops(self, tokens: int) -> int:
        op = self.operator
        width = op.rank if isinstance(op, LowRank) else min(op.shape)
        return op.flops(tokens) + tokens * width


@transpose.register
def _transpose(op: Scaled) -> Operator:
    return Scaled(transpose(op.operator), op.scale)


@dense_flops.register
def _dense_flops(op: Scaled) -> int:
    rows = op.operator.rank if isinstance(op.operator, LowRank) else op.shape[0]
    return dense_flops(op.operator) + rows * op.shape[1]
