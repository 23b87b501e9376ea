from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .dense import Dense
from .diagonal import Diagonal
from .hadamard import Hadamard
from .low_rank import LowRank
from .operator import Operator, parts, require_operators
from .product import Product
from .scaled import Scaled
from .seeded import Seeded
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Sum(Operator):
    """W1 + W2 + ..., of operators of one shape; sums within it are opened.

    A term after the first is added by its last product where it ends in one, so for a frozen
    Dense + s * LowRank the backward pass keeps x and x a.T, and nothing else.
    """

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        require_operators(operators, "Sum")
        terms = [t for op in operators for t in (op.operators if isinstance(op, Sum) else (op,))]
        if len({term.shape for term in terms}) > 1:
            shapes = ", ".join(str(term.shape) for term in terms)
            raise ValueError(f"Sum needs operators of one shape (out, in), got {shapes}")
        self.shape = terms[0].shape
        self.operators = parts(terms)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.operators
        y: Tensor = first(x)
        for op in others:
            y = add(y, op, x)
        return y

    def dense(self) -> Tensor:
        return reduce(torch.add, [op.dense() for op in self.operators])

    def flops(self, tokens: int) -> int:
        added = (len(self.operators) - 1) * tokens * self.shape[0]
        return sum(op.flops(tokens) for op in self.operators) + added


def add(y: Tensor, op: Operator, x: Tensor) -> Tensor:
    """y + op(x), added by the last product or multiplication of `op` where that can do it."""
    inner, scale = (op.operator, op.scale) if isinstance(op, Scaled) else (op, 1.0)
    if isinstance(inner, Product) and isinstance(inner.operators[0], Diagonal):
        u = inner.behind_first(x)
        if u.dtype == y.dtype:
            return torch.addcmul(y, u, inner.operators[0].diagonal.to(u.dtype), value=scale)
        return y + scale * inner.operators[0](u)
    last = _last_product(inner, x)
    if last is None:
        return torch.add(y, inner(x), alpha=scale)
    z, b = last
    if y.ndim == 2:
        return torch.addmm(y, z, b.mT, alpha=scale)
    rows, latents = y.reshape(-1, y.shape[-1]), z.reshape(-1, z.shape[-1])
    return torch.addmm(rows, latents, b.mT, alpha=scale).view(y.shape)


def _last_product(op: Operator, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """z and a matrix b with op(x) = z b.T, where `op` ends so."""
    if isinstance(op, LowRank):
        return op.latent(x), op.b
    if isinstance(op, Hadamard) and (factors := op.factors()) is not None:
        b, a = factors
        return F.linear(x, a), b
    if isinstance(op, Product) and isinstance(op.operators[0], (Dense, Seeded)):
        return op.behind_first(x), op.operators[0].dense()
    return None


@transpose.register
def _transpose(op: Sum) -> Operator:
    return Sum(*(transpose(term) for term in op.operators))


@dense_flops.register
def _dense_flops(op: Sum) -> int:
    added = (len(op.operators) - 1) * op.shape[0] * op.shape[1]
    return sum(dense_flops(term) for term in op.operators) + added
