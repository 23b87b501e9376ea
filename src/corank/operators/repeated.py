from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_operators
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Repeated(Operator):
    """One operator `count` times along the diagonal: each chunk of x goes through it."""

    def __init__(self, operator: Operator, count: int) -> None:
        super().__init__()
        require_operators((operator,), "Repeated")
        self.shape = (count * operator.shape[0], count * operator.shape[1])
        self.operator, self.count = operator, count

    def forward(self, x: Tensor) -> Tensor:
        chunks: Tensor = self.operator(x.unflatten(-1, (self.count, self.operator.shape[1])))
        return chunks.flatten(-2)

    def dense(self) -> Tensor:
        return torch.block_diag(*[self.operator.dense()] * self.count)

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens * self.count)


@transpose.register
def _transpose(op: Repeated) -> Operator:
    return Repeated(transpose(op.operator), op.count)


@dense_flops.register
def _dense_flops(op: Repeated) -> int:
    return dense_flops(op.operator)
