from __future__ import annotations

from functools import reduce
from typing import final

import torch
from torch import Tensor

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
class Rectified(Operator):
    """max(0, W), entry by entry.

    A W composed of diagonal matrices alone is applied as one; any other through its matrix.
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        require_operators((operator,), "Rectified")
        self.shape = operator.shape
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        entries = _entries(self.operator)
        return apply_dense(self, x) if entries is None else x * entries.relu().to(x.dtype)

    def dense(self) -> Tensor:
        return self.operator.dense().relu()

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
def _transpose(op: Rectified) -> Operator:
    return Rectified(transpose(op.operator))


@dense_flops.register
def _dense_flops(op: Rectified) -> int:
    return dense_flops(op.operator) + op.shape[0] * op.shape[1]
