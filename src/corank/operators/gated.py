from __future__ import annotations

from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, require_operators, require_vector
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Gated(Operator):
    """sigmoid(logit) * W: a choice, relaxed, of whether W acts at all. `logit` (1,)."""

    def __init__(self, operator: Operator, logit: Tensor) -> None:
        super().__init__()
        require_operators((operator,), "Gated")
        require_vector(logit, "Gated.logit", 1)
        self.shape = operator.shape
        self.operator, self.logit = operator, leaf(logit)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x)
        return self.logit.sigmoid().to(y.dtype) * y

    def dense(self) -> Tensor:
        w = self.operator.dense()
        return self.logit.sigmoid().to(w.dtype) * w

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + tokens * self.shape[0]


@transpose.register
def _transpose(op: Gated) -> Operator:
    return Gated(transpose(op.operator), op.logit)


@dense_flops.register
def _dense_flops(op: Gated) -> int:
    return dense_flops(op.operator) + op.shape[0] * op.shape[1]
