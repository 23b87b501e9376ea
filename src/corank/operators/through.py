"""Applying an operator whose product is only known through its matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .operator import Operator


def apply_dense(op: Operator, x: Tensor, transposed: bool = False) -> Tensor:
    """`x @ W.T`, or `x @ W` where `transposed`, in the dtype of x (..., in).

    W is made again in the backward pass and not kept for it, so training around a packed or
    composed weight holds no dense copy of it per layer.
    """

    def product(x: Tensor) -> Tensor:
        weight = op.dense().to(x.dtype)
        return F.linear(x, weight.mT if transposed else weight)

    return computed_again(product, x)


def computed_again(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`product(x)`, of which the backward pass keeps x alone and computes the rest again."""
    if not torch.is_grad_enabled():
        return product(x)
    out: Tensor = checkpoint(product, x, use_reentrant=False, preserve_rng_state=False)
    return out
