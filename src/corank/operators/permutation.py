from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_index
from .skeleton import storable
from .transpose import adjoint, transpose


@storable
@final
class Permutation(Operator):
    """Output i is input `index[i]`. `index` (d,) int32 or int64, each of 0..d-1 once.

    It holds no floating point number: `dense()` is in torch's default dtype.
    """

    numbers_held = MappingProxyType({"index": 0})

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        require_index(index, "Permutation.index")
        self.shape = (index.shape[0], index.shape[0])
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)

    def dense(self) -> Tensor:
        eye = torch.eye(self.shape[0], dtype=self.dtype, device=self.index.device)
        return eye.index_select(0, self.index)

    def flops(self, tokens: int) -> int:
        return 0


def exchange(one: int, two: int, each: int = 1) -> Permutation:
    """From the order (one, two, each), read in rows, to (two, one, each)."""
    order = torch.arange(one * two * each).view(one, two, each)
    return Permutation(order.transpose(0, 1).flatten().int())


@transpose.register
def _transpose(op: Permutation) -> Operator:
    return Permutation(op.index.argsort().to(op.index.dtype))


@adjoint.register
def _adjoint(op: Permutation, x: Tensor) -> Tensor:
    return x.index_select(-1, op.index.argsort())


@dense_flops.register
def _dense_flops(op: Permutation) -> int:
    return 0
