from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, require_operators, require_vector
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Mixture(Operator):
    """A sum of k matrices, each a row of `bank` (k, out in). `coefficients` (k,)."""

    def __init__(self, coefficients: Tensor, bank: Operator, shape: tuple[int, int]) -> None:
        super().__init__()
        require_vector(coefficients, "Mixture.coefficients")
        require_operators((bank,), "Mixture")
        wanted = (coefficients.shape[0], shape[0] * shape[1])
        if bank.shape != wanted:
            raise ValueError(f"Mixture.bank must be {wanted}, got {bank.shape}")
        self.shape = (shape[0], shape[1])
        self.coefficients, self.bank = leaf(coefficients), bank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense())

    def dense(self) -> Tensor:
        return (self.coefficients @ self.bank.dense()).view(self.shape)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@adjoint.register
def _adjoint(op: Mixture, x: Tensor) -> Tensor:
    return x @ op.dense()


@dense_flops.register
def _dense_flops(op: Mixture) -> int:
    return dense_flops(op.bank) + 2 * op.bank.shape[0] * op.bank.shape[1]
