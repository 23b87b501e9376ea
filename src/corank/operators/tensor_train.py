from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, parts, require_operators
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class TensorTrain(Operator):
    """A matrix product operator: a chain of cores, one for each digit of the row and column.

    Row i1 i2 ... and column j1 j2 ..., read in the mixed radices `rows` and `columns`, hold the
    product T1[:, i1, j1, :] T2[:, i2, j2, :] ... Core k is an operator of shape
    (left rows[k], columns[k] right), left and right being its bonds; the outer bonds are 1.
    """

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator, rows: Sequence[int], columns: Sequence[int]) -> None:
        super().__init__()
        require_operators(operators, "TensorTrain")
        if not len(operators) == len(rows) == len(columns):
            raise ValueError(f"TensorTrain: {len(operators)} cores, rows {rows}, columns {columns}")
        self.bonds = [
            (op.shape[0] // i, op.shape[1] // j)
            for op, i, j in zip(operators, rows, columns, strict=True)
        ]
        fits = all(
            op.shape == (left * i, j * right)
            for op, i, j, (left, right) in zip(operators, rows, columns, self.bonds, strict=True)
        )
        joined = all(one[1] == two[0] for one, two in pairwise(self.bonds))
        if not (fits and joined and self.bonds[0][0] == self.bonds[-1][1] == 1):
            shapes = [op.shape for op in operators]
            raise ValueError(f"TensorTrain: cores {shapes} do not fit {rows} and {columns}")
        self.shape = (prod(rows), prod(columns))
        self.rows, self.columns = tuple(rows), tuple(columns)
        self.operators = parts(operators)
        self._dense_flops = dense_flops(self)  # found once: the dispatch does not compile

    def forward(self, x: Tensor) -> Tensor:
        tokens = prod(x.shape[:-1])
        if self._contracted(tokens) > self._written(tokens):
            return apply_dense(self, x)
        return _contract(self.cores(), x)

    def cores(self) -> list[Tensor]:
        """Each core as (left, row, column, right)."""
        return [
            op.dense().view(left, i, j, right)
            for op, i, j, (left, right) in zip(
                self.operators, self.rows, self.columns, self.bonds, strict=True
            )
        ]

    def dense(self) -> Tensor:
        first, *others = self.cores()
        w = first[0]  # (rows so far, columns so far, right)
        for core in others:
            w = torch.einsum("rcx,xijy->ricjy", w, core).flatten(2, 3).flatten(0, 1)
        return w[..., 0]

    def flops(self, tokens: int) -> int:
        return min(self._contracted(tokens), self._written(tokens))

    def _written(self, tokens: int) -> int:
        """Operations where the matrix is written down: less for wide bonds and many tokens."""
        return self._dense_flops + 2 * tokens * self.shape[0] * self.shape[1]

    def _contracted(self, tokens: int) -> int:
        """Operations where x meets core after core."""
        total, done = 0, 1
        for k, (left, right) in enumerate(self.bonds):
            i, rest = self.rows[k], prod(self.columns[k:])
            total += 2 * tokens * done * left * rest * i * right
            done *= i
        return total


def _contract(cores: Sequence[Tensor], x: Tensor) -> Tensor:
    count, rest, z = prod(x.shape[:-1]), x.shape[-1], x
    for core in cores:
        left, i, j, right = core.shape
        rest //= j
        matrix = core.permute(1, 3, 0, 2).reshape(i * right, left * j)
        z = matrix @ z.reshape(count, left * j, rest)
        count *= i
    return z.reshape(*x.shape[:-1], prod([core.shape[1] for core in cores]))


@adjoint.register
def _adjoint(op: TensorTrain, x: Tensor) -> Tensor:
    return _contract([core.transpose(1, 2) for core in op.cores()], x)


@dense_flops.register
def _dense_flops(op: TensorTrain) -> int:
    total = 0
    for k, (left, right) in enumerate(op.bonds):
        total += 2 * prod(op.rows[: k + 1]) * prod(op.columns[: k + 1]) * left * right * (k > 0)
    return total
