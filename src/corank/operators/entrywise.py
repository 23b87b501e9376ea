from __future__ import annotations

from functools import reduce
from typing import final

import torch
from torch import Tensor

from .activated import FUNCTIONS
from .cost import dense_flops
from .diagonal import Diagonal
from .operator import Operator, require_operators
from .product import Product
from .scaled import Scaled
from .skeleton import storable
from .sum import Sum
from .through import apply_dense
from .transpose import transpose


@storable
@final
class Entrywise(Operator):
    """f(W), entry by entry of the matrix: linear in x. f is one of `FUNCTIONS`; each keeps zero.

    A W composed of diagonal matrices alone is applied as one; any other through its matrix.
    """

    def __init__(self, operator: Operator, function: str) -> None:
        super().__init__()
        require_operators((operator,), "Entrywise")
        if function not in FUNCTIONS:
            raise ValueError(f"Entrywise: {function!r} is none of {', '.join(sorted(FUNCTIONS))}")
        self.shape = operator.shape
        self.operator, self.function = operator, function

    def forward(self, x: Tensor) -> Tensor:
        entries = _entries(self.operator)
        return (
            apply_dense(self, x)
            if entries is None
            else x * FUNCTIONS[self.function](entries).to(x.dtype)
        )

    def dense(self) -> Tensor:
        return FUNCTIONS[self.function](self.operator.dense())

    def flops(self, tokens: int) -> int:
        out, into = self.shape
        if _entries(self.operator) is None:
            return dense_flops(self) + 2 * tokens * out * into
        return self.operator.flops(1) + out + tokens * out


def _entries(op: Operator) -> Tensor | None:  # (d,)
    """The diagonal of an operator made of diagonal ones, or None for any other."""
    if isinstance(op, Diagonal):
        return op.diagonal
    if isinstance(op, Scaled):
        inner = _entries(op.operator)
        return None if inner is None else op.scale * inner
    if isinstance(op, (Sum, Product)):
        found = [_entries(part) for part in op.operators]
        parts = [entries for entries in found if entries is not None]
        whole = len(parts) == len(found)
        return reduce(torch.add if isinstance(op, Sum) else torch.mul, parts) if whole else None
    return None


@transpose.register
def _transpose(op: Entrywise) -> Operator:
    return Entrywise(transpose(op.operator), op.function)


@dense_flops.register
def _dense_flops(op: Entrywise) -> int:
    return dense_flops(op.operator) + op.shape[0] * op.shape[1]
