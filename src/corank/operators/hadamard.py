from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .low_rank import LowRank
from .operator import Operator, require_operators
from .skeleton import storable
from .through import apply_dense
from .transpose import transpose


@storable
@final
class Hadamard(Operator):
    """The elementwise product p * q of two operators of one shape.

    Two LowRanks of ranks r1 and r2 make one of rank r1 r2, whose factors are the row-wise and
    column-wise Kronecker products of theirs. It is applied so where that multiplies less than a
    dense product, r1 r2 (out + in) < out in; else through the matrix.
    """

    def __init__(self, p: Operator, q: Operator) -> None:
        super().__init__()
        require_operators((p, q), "Hadamard")
        if p.shape != q.shape:
            raise ValueError(f"Hadamard needs operators of one shape, got {p.shape} and {q.shape}")
        self.shape = p.shape
        self.p, self.q = p, q

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors()
        if factors is None:
            return apply_dense(self, x)
        b, a = factors
        return F.linear(F.linear(x, a), b)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(out, r1 r2) and (r1 r2, in), the factors of the product, where using them pays."""
        pair = self._low_ranks()
        if pair is None:
            return None
        (b1, a1), (b2, a2) = pair[0].factors(), pair[1].factors()
        b = (b1[:, :, None] * b2[:, None, :]).flatten(1)
        return b, (a1[:, None, :] * a2[None, :, :]).flatten(0, 1)

    def dense(self) -> Tensor:
        return self.p.dense() * self.q.dense()

    def flops(self, tokens: int) -> int:
        out, into = self.shape
        pair = self._low_ranks()
        if pair is None:
            return dense_flops(self) + 2 * tokens * out * into
        rank = pair[0].rank * pair[1].rank
        folding = sum(op.folding_flops() for op in pair)
        return folding + rank * (out + into) * (1 + 2 * tokens)

    def _low_ranks(self) -> tuple[LowRank, LowRank] | None:
        """Both operands, where multiplying through their factors pays."""
        p, q, (out, into) = self.p, self.q, self.shape
        if not (isinstance(p, LowRank) and isinstance(q, LowRank)):
            return None
        return (p, q) if p.rank * q.rank * (out + into) < out * into else None


@transpose.register
def _transpose(op: Hadamard) -> Operator:
    return Hadamard(transpose(op.p), transpose(op.q))


@dense_flops.register
def _dense_flops(op: Hadamard) -> int:
    return dense_flops(op.p) + dense_flops(op.q) + op.shape[0] * op.shape[1]
