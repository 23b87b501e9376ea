from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast, final

import torch
from torch import Tensor, nn

from .cost import dense_flops
from .operator import Operator, parts, require_operators
from .skeleton import storable
from .through import apply_dense


@storable
@final
class Refined(Operator):
    """W1 + W2 + ..., each term fitted to what those before it left: any first few stand alone.

    `errors` says of each number of terms, from one on, what the sum then still lacks.
    """

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator, errors: Sequence[float]) -> None:
        super().__init__()
        require_operators(operators, "Refined")
        if len({op.shape for op in operators}) > 1 or len(errors) != len(operators):
            shapes = ", ".join(str(op.shape) for op in operators)
            raise ValueError(
                "Refined needs operators of one shape and an error for each, got "
                f"{shapes} and {len(errors)} errors"
            )
        self.shape = operators[0].shape
        self.operators = parts(operators)
        self.errors = tuple(errors)

    def shorten(self, count: int) -> None:
        """Keep the first `count` terms, at least 1, in place."""
        held = cast("nn.ModuleList", self.operators)
        del held[max(count, 1) :]
        self.errors = self.errors[: len(held)]

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        return reduce(torch.add, [op.dense() for op in self.operators])

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@dense_flops.register
def _dense_flops(op: Refined) -> int:
    added = (len(op.operators) - 1) * op.shape[0] * op.shape[1]
    return sum(dense_flops(term) for term in op.operators) + added
