from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from torch import Tensor

from .chain import plan
from .cost import dense_flops
from .operator import Operator, parts, require_operators
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Product(Operator):
    """W1 W2 ..., the last of which meets x first; products within it are opened.

    `forward` goes from right to left. `dense` associates in the order that costs least, LowRanks
    opened, structured operators applied rather than written down.
    """

    operators: Sequence[Operator]

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        require_operators(operators, "Product")
        opened: list[Operator] = []
        for op in operators:
            opened.extend(op.operators if isinstance(op, Product) else (op,))
        for left, right in pairwise(opened):
            if left.shape[1] != right.shape[0]:
                raise ValueError(
                    f"Product: {left.shape} times {right.shape} does not fit: the input of the "
                    f"left operator ({left.shape[1]}) must be the output of the right one"
                )
        self.shape = (opened[0].shape[0], opened[-1].shape[1])
        self.operators = parts(opened)
        self._chain = plan(opened)

    def forward(self, x: Tensor) -> Tensor:
        for op in reversed(self.operators):
            x = op(x)
        return x

    def behind_first(self, x: Tensor) -> Tensor:
        """All operators but the first applied to x."""
        for op in reversed(list(self.operators)[1:]):
            x = op(x)
        return x

    def dense(self) -> Tensor:
        for part in self.modules():
            if isinstance(part, Operator) and not part.linear:
                part.dense()  # raises; applied to the other factors it would give some matrix
        return self._chain.multiply(self.operators, self.dtype, self.device)

    def flops(self, tokens: int) -> int:
        return sum(op.flops(tokens) for op in self.operators)


@transpose.register
def _transpose(op: Product) -> Operator:
    return Product(*(transpose(factor) for factor in reversed(op.operators)))


@dense_flops.register
def _dense_flops(op: Product) -> int:
    return op._chain.flops
