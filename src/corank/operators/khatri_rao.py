from __future__ import annotations

from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_operators
from .skeleton import storable
from .through import apply_dense


@storable
@final
class KhatriRao(Operator):
    """Every row of p times every row of q, elementwise: W[i q_out + k, j] = p[i, j] q[k, j].

    It is applied through its matrix, which the backward pass makes again.
    """

    def __init__(self, p: Operator, q: Operator) -> None:
        super().__init__()
        require_operators((p, q), "KhatriRao")
        if p.shape[1] != q.shape[1]:
            raise ValueError(f"KhatriRao needs as many columns in each, got {p.shape}, {q.shape}")
        self.shape = (p.shape[0] * q.shape[0], p.shape[1])
        self.p, self.q = p, q

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        return (self.p.dense()[:, None] * self.q.dense()).flatten(0, 1)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@dense_flops.register
def _dense_flops(op: KhatriRao) -> int:
    return dense_flops(op.p) + dense_flops(op.q) + op.shape[0] * op.shape[1]
