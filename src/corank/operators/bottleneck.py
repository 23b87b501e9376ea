from __future__ import annotations

from typing import NoReturn, final

from torch import Tensor
from torch.nn import functional as F

from .operator import Operator, leaf, require_operators, require_vector
from .skeleton import storable


@storable
@final
class Bottleneck(Operator):
    """h -> h + up gelu(down h + inner) + outer: an adapter module. Not a linear map.

    `up` (d, k), `down` (k, d), `inner` (k,), `outer` (d,). GELU is the tanh approximation. It has
    no matrix, so `dense()` raises.
    """

    linear = False

    def __init__(self, up: Operator, down: Operator, inner: Tensor, outer: Tensor) -> None:
        super().__init__()
        require_operators((up, down), "Bottleneck")
        if up.shape != down.shape[::-1]:
            raise ValueError(f"Bottleneck: up {up.shape} must be the shape of down {down.shape}.T")
        require_vector(inner, "Bottleneck.inner", down.shape[0])
        require_vector(outer, "Bottleneck.outer", up.shape[0])
        self.shape = (up.shape[0], up.shape[0])
        self.up, self.down = up, down
        self.inner, self.outer = leaf(inner), leaf(outer)

    def forward(self, x: Tensor) -> Tensor:
        inner, outer = self.inner.to(x.dtype), self.outer.to(x.dtype)
        y: Tensor = x + self.up(F.gelu(self.down(x) + inner, approximate="tanh")) + outer
        return y

    def dense(self) -> NoReturn:
        raise ValueError(
            "this adapter bends what passes it, so it is not one matrix and cannot be merged or "
            "compressed: keep it as it is, or delete it"
        )

    def flops(self, tokens: int) -> int:
        own = tokens * (2 * self.shape[0] + 10 * self.down.shape[0])
        return self.down.flops(tokens) + self.up.flops(tokens) + own
