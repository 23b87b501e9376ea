from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .lengths import squares, squares_flops
from .operator import Operator, leaf, require_operators, require_vector
from .skeleton import storable
from .transpose import transpose


@storable
@final
class FrobeniusNormalised(Operator):
    """m W / |W|: a matrix of Frobenius norm `m` in the direction of W. `m` (1,).

    A W that is zero stays zero.
    """

    def __init__(self, operator: Operator, m: Tensor) -> None:
        super().__init__()
        require_operators((operator,), "FrobeniusNormalised")
        require_vector(m, "FrobeniusNormalised.m", 1)
        self.shape = operator.shape
        self.operator, self.m = operator, leaf(m)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x)
        return y * self._factor().to(y.dtype)

    def dense(self) -> Tensor:
        weight = self.operator.dense()
        return weight * self._factor().to(weight.dtype)

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + tokens * self.shape[0] + self._factor_flops()

    def _factor(self) -> Tensor:  # (1,)
        total = squares(self.operator, 1).sum()
        return self.m / total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()

    def _factor_flops(self) -> int:
        return squares_flops(self.operator, 1) + self.shape[0] + 2


@transpose.register
def _transpose(op: FrobeniusNormalised) -> Operator:
    return FrobeniusNormalised(transpose(op.operator), op.m)


@dense_flops.register
def _dense_flops(op: FrobeniusNormalised) -> int:
    return dense_flops(op.operator) + op._factor_flops() + op.shape[0] * op.shape[1]
