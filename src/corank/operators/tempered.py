from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .low_rank import LowRank
from .operator import Operator, require_operators
from .skeleton import storable


@storable
@final
class Tempered(Operator):
    """b a, whose leaves learn row i at 1 / sqrt(|row i of b a| + 1 / eta2) of the rate.

    Only the gradients of the leaves are scaled; that of x is the product's own, so layers below
    see nothing of it. The value is that of `operator`.
    """

    def __init__(self, operator: LowRank, eta2: float) -> None:
        super().__init__()
        require_operators((operator,), "Tempered")
        if not eta2 > 0:
            raise ValueError(f"Tempered.eta2 must be positive, got {eta2}")
        self.shape = operator.shape
        self.operator, self.eta2 = operator, eta2

    def forward(self, x: Tensor) -> Tensor:
        b, a = self.operator.factors()
        y = F.linear(F.linear(x, a.detach()), b.detach())
        if not torch.is_grad_enabled():
            return y
        learns = F.linear(F.linear(x.detach(), a), b)
        return y + self._factor().to(y.dtype) * (learns - learns.detach())

    def dense(self) -> Tensor:
        w = self.operator.dense()
        return w.detach() + self._factor()[:, None] * (w - w.detach())

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens)

    def _factor(self) -> Tensor:  # (out,)
        with torch.no_grad():
            b, a = self.operator.factors()
            squares = ((b @ (a @ a.mT)) * b).sum(1)  # of the rows of b a, which is not formed
            return (squares.clamp_min(0).sqrt() + 1 / self.eta2).rsqrt()


@dense_flops.register
def _dense_flops(op: Tempered) -> int:
    return dense_flops(op.operator)
