from __future__ import annotations

from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_operators
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Tiled(Operator):
    """[W W ... W], one operator beside itself: the parts of the input are added, then mapped."""

    def __init__(self, operator: Operator, times: int) -> None:
        super().__init__()
        require_operators((operator,), "Tiled")
        if times < 1:
            raise ValueError(f"Tiled.times must be at least 1, got {times}")
        self.shape = (operator.shape[0], operator.shape[1] * times)
        self.operator, self.times = operator, times
        # Looked up once: torch.compile does not trace a dispatch.
        self._adjoint = adjoint.dispatch(type(operator))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x.unflatten(-1, (self.times, -1)).sum(-2))
        return y

    def dense(self) -> Tensor:
        return self.operator.dense().repeat(1, self.times)

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + tokens * (self.shape[1] - self.operator.shape[1])


@adjoint.register
def _adjoint(op: Tiled, x: Tensor) -> Tensor:
    part: Tensor = op._adjoint(op.operator, x)
    return part.repeat(*[1] * (x.ndim - 1), op.times)


@dense_flops.register
def _dense_flops(op: Tiled) -> int:
    return dense_flops(op.operator)
