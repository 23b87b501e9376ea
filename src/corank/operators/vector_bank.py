from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class VectorBank(Operator):
    """Rows put together from vectors of a bank, each piece a mixture of its `count` likeliest.

    `bank` (h, length), `logits` (out, in / length, h). A piece is the mean of the bank's vectors
    under the softmax over its `count` largest logits; the others get no gradient.
    """

    def __init__(self, bank: Tensor, logits: Tensor, count: int) -> None:
        super().__init__()
        require_matrix(bank, "VectorBank.bank")
        if logits.ndim != 3 or logits.shape[2] != bank.shape[0]:
            raise ValueError(
                f"VectorBank.logits must be (out, in / {bank.shape[1]}, {bank.shape[0]}), "
                f"got {tuple(logits.shape)}"
            )
        if not 1 <= count <= bank.shape[0]:
            raise ValueError(f"VectorBank.count must be 1 to {bank.shape[0]}, got {count}")
        self.shape = (logits.shape[0], logits.shape[1] * bank.shape[1])
        self.bank, self.logits, self.count = leaf(bank), leaf(logits), count

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense())

    def dense(self) -> Tensor:
        top, index = self.logits.topk(self.count, -1)
        weights = top.softmax(-1).to(self.bank.dtype)
        pieces = weights.unsqueeze(-2) @ self.bank[index]  # (out, in / length, 1, length)
        return pieces.flatten(1)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@adjoint.register
def _adjoint(op: VectorBank, x: Tensor) -> Tensor:
    return x @ op.dense()


@dense_flops.register
def _dense_flops(op: VectorBank) -> int:
    return 2 * op.count * op.shape[0] * op.shape[1] + op.logits.numel()
