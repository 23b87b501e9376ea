from __future__ import annotations

from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_operators
from .skeleton import storable
from .through import apply_dense
from .transpose import transpose


@storable
@final
class OnSupport(Operator):
    """An operator where `support` is not zero, and zero elsewhere.

    The support is looked up anew in every pass, so that no mask is stored beside it, and gets no
    gradient.
    """

    def __init__(self, operator: Operator, support: Operator) -> None:
        super().__init__()
        require_operators((operator, support), "OnSupport")
        if operator.shape != support.shape:
            raise ValueError(
                f"OnSupport needs operators of one shape, got {operator.shape} and {support.shape}"
            )
        self.shape = operator.shape
        self.operator, self.support = operator, support

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        weight = self.operator.dense()
        return weight * (self.support.dense().detach() != 0).to(weight.dtype)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@transpose.register
def _transpose(op: OnSupport) -> Operator:
    return OnSupport(transpose(op.operator), transpose(op.support))


@dense_flops.register
def _dense_flops(op: OnSupport) -> int:
    return dense_flops(op.operator) + dense_flops(op.support) + op.shape[0] * op.shape[1]
