from __future__ import annotations

from typing import NoReturn, final

from torch import Tensor
from torch.nn import functional as F

from .operator import Operator, leaf, require_operators, require_vector
from .skeleton import storable


@storable
@final
class Standardised(Operator):
    """x -> gamma * (y - mean y) / std y, for y the operator's output on x. Not a linear map.

    `gamma` (out,). It has no matrix, so `dense()` raises.
    """

    linear = False

    def __init__(self, operator: Operator, gamma: Tensor) -> None:
        super().__init__()
        require_operators((operator,), "Standardised")
        require_vector(gamma, "Standardised.gamma", operator.shape[0])
        self.shape = operator.shape
        self.operator, self.gamma = operator, leaf(gamma)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x)
        return F.layer_norm(y, (self.shape[0],)) * self.gamma.to(y.dtype)

    def dense(self) -> NoReturn:
        raise ValueError("outputs that are standardised are not those of one matrix")

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + 6 * tokens * self.shape[0]
