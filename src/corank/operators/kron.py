from __future__ import annotations

from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_operators
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Kron(Operator):
    """The Kronecker product p (x) q: W[i q_out + k, j q_in + l] = p[i, j] q[k, l].

    The product is never formed: x, read as a (p_in, q_in) matrix X row by row, becomes p X q.T,
    from the side that costs less.
    """

    def __init__(self, p: Operator, q: Operator) -> None:
        super().__init__()
        require_operators((p, q), "Kron")
        self.shape = (p.shape[0] * q.shape[0], p.shape[1] * q.shape[1])
        self.p, self.q = p, q

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.p.shape[1], self.q.shape[1]))  # (..., p_in, q_in)
        right_first, left_first = self._costs(1)
        if right_first <= left_first:
            y: Tensor = self.p(self.q(x).mT).mT
        else:
            y = self.q(self.p(x.mT).mT)
        return y.flatten(-2)  # (..., p_out q_out)

    def dense(self) -> Tensor:
        p, q = self.p.dense(), self.q.dense()
        return (p[:, None, :, None] * q[None, :, None, :]).reshape(self.shape)

    def flops(self, tokens: int) -> int:
        return min(self._costs(tokens))

    def _costs(self, tokens: int) -> tuple[int, int]:
        (p_out, p_in), (q_out, q_in) = self.p.shape, self.q.shape
        right_first = self.q.flops(tokens * p_in) + self.p.flops(tokens * q_out)
        left_first = self.p.flops(tokens * q_in) + self.q.flops(tokens * p_out)
        return right_first, left_first


@transpose.register
def _transpose(op: Kron) -> Operator:
    return Kron(transpose(op.p), transpose(op.q))


@dense_flops.register
def _dense_flops(op: Kron) -> int:
    return dense_flops(op.p) + dense_flops(op.q) + op.shape[0] * op.shape[1]
