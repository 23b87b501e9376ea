from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .lengths import squares, squares_flops
from .operator import Operator, leaf, require_operators, require_vector
from .skeleton import storable
from .transpose import transpose


@storable
@final
class RowNormalised(Operator):
    """diag(m) diag(1 / |row of W|) W: rows of length `m`, in the direction of W's. `m` (out,).

    `detached` passes no gradient through the lengths (DoRA, arXiv 2402.09353, section 4.3), which
    then keep nothing for the backward pass. A row that is zero stays zero.
    """

    def __init__(self, operator: Operator, m: Tensor, detached: bool = True) -> None:
        super().__init__()
        require_operators((operator,), "RowNormalised")
        require_vector(m, "RowNormalised.m", operator.shape[0])
        self.shape = operator.shape
        self.operator, self.m, self.detached = operator, leaf(m), detached

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x)
        return y * self.factor().to(y.dtype)

    def dense(self) -> Tensor:
        weight = self.operator.dense()
        return weight * self.factor().to(weight.dtype)[:, None]

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + tokens * self.shape[0] + _length_flops(self, 0)

    def factor(self) -> Tensor:  # (out,)
        """What each row of the operator is multiplied by."""
        return self.m / _lengths(self.operator, 1, self.detached)


@storable
@final
class ColumnNormalised(Operator):
    """W diag(1 / |column of W|) diag(m): columns of length `m`, in the direction of W's. `m` (in,).

    `detached` as in `RowNormalised`. A column that is zero stays zero.
    """

    def __init__(self, operator: Operator, m: Tensor, detached: bool = True) -> None:
        super().__init__()
        require_operators((operator,), "ColumnNormalised")
        require_vector(m, "ColumnNormalised.m", operator.shape[1])
        self.shape = operator.shape
        self.operator, self.m, self.detached = operator, leaf(m), detached

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x * self._factor().to(x.dtype))
        return y

    def dense(self) -> Tensor:
        weight = self.operator.dense()
        return weight * self._factor().to(weight.dtype)

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + tokens * self.shape[1] + _length_flops(self, 1)

    def _factor(self) -> Tensor:  # (in,)
        return self.m / _lengths(self.operator, 0, self.detached)


def normalise_rows(op: Operator, detached: bool = True) -> RowNormalised:
    """`op` as directions times lengths: the same map, with `m` the lengths of its rows."""
    return RowNormalised(op, _lengths(op, 1, detached=True).to(op.dtype), detached)


def normalise_columns(op: Operator, detached: bool = True) -> ColumnNormalised:
    """`op` as directions times lengths: the same map, with `m` the lengths of its columns."""
    return ColumnNormalised(op, _lengths(op, 0, detached=True).to(op.dtype), detached)


def _lengths(op: Operator, axis: int, detached: bool) -> Tensor:
    if detached:
        with torch.no_grad():
            return _lengths(op, axis, detached=False)
    total = squares(op, axis)
    # The smallest normal number, so that a zero row or column divides to zero.
    return total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()


def _length_flops(op: RowNormalised | ColumnNormalised, side: int) -> int:
    return squares_flops(op.operator, 1 - side) + 2 * op.shape[side]


@transpose.register
def _transpose_rows(op: RowNormalised) -> Operator:
    return ColumnNormalised(transpose(op.operator), op.m, op.detached)


@transpose.register
def _transpose_columns(op: ColumnNormalised) -> Operator:
    return RowNormalised(transpose(op.operator), op.m, op.detached)


def _normalised_dense_flops(op: RowNormalised | ColumnNormalised, side: int) -> int:
    return dense_flops(op.operator) + _length_flops(op, side) + op.shape[0] * op.shape[1]


@dense_flops.register
def _dense_flops_rows(op: RowNormalised) -> int:
    return _normalised_dense_flops(op, 0)


@dense_flops.register
def _dense_flops_columns(op: ColumnNormalised) -> int:
    return _normalised_dense_flops(op, 1)
