from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .operator import Operator, require_operators
from .skeleton import storable

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh,
}  # fmt: skip


@storable
@final
class Activated(Operator):
    """x -> f(W x), f entry by entry, one of `FUNCTIONS`. Not a linear map.

    It has no matrix, so `dense()` raises.
    """

    linear = False

    def __init__(self, operator: Operator, function: str) -> None:
        super().__init__()
        require_operators((operator,), "Activated")
        if function not in FUNCTIONS:
            raise ValueError(f"Activated: {function!r} is none of {', '.join(sorted(FUNCTIONS))}")
        self.shape = operator.shape
        self.operator, self.function = operator, function

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.function](self.operator(x))

    def dense(self) -> NoReturn:
        raise ValueError("outputs that go through an activation are not those of one matrix")

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + tokens * self.shape[0]
