from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class RowSparse(Operator):
    """A matrix with as many numbers in every row: W[i, columns[i, k]] = values[i, k].

    `values` (out, n), or an operator of that shape, such as their codes; `columns` (out, n) uint8,
    int16 or int32, each at most once in its row and below `into`: the smallest type that holds
    them is what `column_type` names. The product is through the matrix, which is made again in the
    backward pass.
    """

    numbers_held = MappingProxyType({"columns": 0})

    columns: Tensor

    def __init__(self, values: Tensor | Operator, columns: Tensor, into: int) -> None:
        super().__init__()
        if not isinstance(values, Operator):
            require_matrix(values, "RowSparse.values")
        if columns.dtype not in (torch.uint8, torch.int16, torch.int32):
            raise ValueError(f"RowSparse.columns must be uint8, int16 or int32: {columns.dtype}")
        if tuple(values.shape) != tuple(columns.shape) or values.shape[1] > into:
            raise ValueError(
                f"RowSparse: values {tuple(values.shape)} and columns {tuple(columns.shape)} must "
                f"agree, and have at most {into} in a row"
            )
        self.into = into
        self.shape = (values.shape[0], into)
        self.values = values if isinstance(values, Operator) else leaf(values)
        self.register_buffer("columns", columns.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        values = self.values.dense() if isinstance(self.values, Operator) else self.values
        return values.new_zeros(self.shape).scatter(1, self.columns.long(), values)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


def column_type(into: int) -> torch.dtype:
    """The smallest type that holds the columns of a matrix `into` wide."""
    return torch.uint8 if into <= 2**8 else torch.int16 if into <= 2**15 else torch.int32


@adjoint.register
def _adjoint(op: RowSparse, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: RowSparse) -> int:
    return dense_flops(op.values) if isinstance(op.values, Operator) else 0
