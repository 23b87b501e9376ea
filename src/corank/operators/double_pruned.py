from __future__ import annotations

from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator
from .skeleton import storable
from .sparse import Sparse


@storable
@final
class DoublePruned(Operator):
    """A Sparse whose inputs get their gradient through some of its values only.

    `kept` (n,) bool: the values that take part in the product with the outputs' gradient. All
    values take part in the forward pass, and all get their gradient (SLoPe, arXiv 2405.16325).
    """

    numbers_held = MappingProxyType({"kept": 0})

    kept: Tensor

    def __init__(self, operator: Sparse, kept: Tensor) -> None:
        super().__init__()
        if not isinstance(operator, Sparse):
            raise TypeError(f"DoublePruned is over a Sparse, got {type(operator).__name__}")
        if kept.dtype != torch.bool or kept.shape != operator.values.shape:
            kind = f"{kept.dtype} of shape {tuple(kept.shape)}"
            raise ValueError(
                f"DoublePruned.kept must be bool of shape ({operator.values.shape[0]},), got {kind}"
            )
        self.shape = operator.shape
        self.operator = operator
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.operator
        out: Tensor = _Product.apply(x, inner.values, inner.index, self.kept, self.shape)
        return out

    def dense(self) -> Tensor:
        return self.operator.dense()

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.shape[0] * self.shape[1]


@final
class _Product(torch.autograd.Function):
    """Only the values are kept for the backward pass, not the matrices made of them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, index: Tensor, kept: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, values, index, kept)
        ctx.shape = shape
        return F.linear(x, _matrix(values, index, shape).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, values, index, kept = ctx.saved_tensors
        (grad,) = grads
        to_x = to_values = None
        if ctx.needs_input_grad[0]:
            pruned = _matrix(values * kept, index, ctx.shape)
            to_x = (grad @ pruned.to(grad.dtype)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            rows = x.reshape(-1, ctx.shape[1]).to(grad.dtype)
            product = grad.reshape(-1, ctx.shape[0]).mT @ rows
            to_values = product.flatten()[index.long()].to(values.dtype)
        return to_x, to_values, None, None, None


def _matrix(values: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    flat = values.new_zeros(shape[0] * shape[1])
    return flat.index_copy(0, index.long(), values).view(shape)


@dense_flops.register
def _dense_flops(op: DoublePruned) -> int:
    return 0
