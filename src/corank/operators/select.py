from __future__ import annotations

from types import MappingProxyType
from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_index
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Select(Operator):
    """Output i is input `index[i]`, of `width` inputs; its transpose puts them back, the rest zero.

    `index` (k,) int32 or int64, in 0..width - 1, each at most once. It holds no floating point
    number: `dense()` is in torch's default dtype.
    """

    numbers_held = MappingProxyType({"index": 0})

    index: Tensor

    def __init__(self, index: Tensor, width: int) -> None:
        super().__init__()
        require_index(index, "Select.index")
        if index.shape[0] > width:
            raise ValueError(f"Select: {index.shape[0]} places cannot differ among {width}")
        self.shape, self.width = (index.shape[0], width), width
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)

    def dense(self) -> Tensor:
        rows = self.index.new_zeros(self.shape, dtype=self.dtype)
        return rows.scatter(1, self.index.long()[:, None], 1.0)

    def flops(self, tokens: int) -> int:
        return 0


@adjoint.register
def _adjoint(op: Select, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], op.width).index_copy(-1, op.index.long(), x)


@dense_flops.register
def _dense_flops(op: Select) -> int:
    return 0
