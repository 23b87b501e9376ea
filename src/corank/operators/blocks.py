from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, parts, require_operators
from .skeleton import storable
from .transpose import transpose


@storable
@final
class BlockRows(Operator):
    """Operators on the same input, their outputs one after another: W = [W1; W2; ...]."""

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        require_operators(operators, "BlockRows")
        if len({op.shape[1] for op in operators}) > 1:
            widths = [op.shape[1] for op in operators]
            raise ValueError(f"BlockRows needs operators of one input width, got {widths}")
        self.shape = (sum(op.shape[0] for op in operators), operators[0].shape[1])
        self.operators = parts(operators)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([op(x) for op in self.operators], -1)

    def dense(self) -> Tensor:
        return torch.cat([op.dense() for op in self.operators])

    def flops(self, tokens: int) -> int:
        return sum(op.flops(tokens) for op in self.operators)


@storable
@final
class BlockColumns(Operator):
    """Operators on consecutive parts of the input, their outputs added: W = [W1, W2, ...]."""

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        require_operators(operators, "BlockColumns")
        if len({op.shape[0] for op in operators}) > 1:
            widths = [op.shape[0] for op in operators]
            raise ValueError(f"BlockColumns needs operators of one output width, got {widths}")
        self.shape = (operators[0].shape[0], sum(op.shape[1] for op in operators))
        self.operators = parts(operators)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split([op.shape[1] for op in self.operators], -1)
        return reduce(torch.add, [op(part) for op, part in zip(self.operators, parts, strict=True)])

    def dense(self) -> Tensor:
        return torch.cat([op.dense() for op in self.operators], 1)

    def flops(self, tokens: int) -> int:
        added = (len(self.operators) - 1) * tokens * self.shape[0]
        return sum(op.flops(tokens) for op in self.operators) + added


@transpose.register
def _transpose_rows(op: BlockRows) -> Operator:
    return BlockColumns(*(transpose(block) for block in op.operators))


@transpose.register
def _transpose_columns(op: BlockColumns) -> Operator:
    return BlockRows(*(transpose(block) for block in op.operators))


@dense_flops.register(BlockRows)
@dense_flops.register(BlockColumns)
def _dense_flops(op: BlockRows | BlockColumns) -> int:
    return sum(dense_flops(block) for block in op.operators)
