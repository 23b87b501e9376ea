from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..operators.adapted import Adapted
from ..operators.base import Base
from ..operators.dense import Dense
from ..operators.low_rank import LowRank
from ..operators.normalised import RowNormalised
from ..operators.operator import Operator
from ..operators.precision import autocasts
from ..operators.sum import Sum, add
from .lazy import lazy_dense
from .origin import Origin, initialised
from .rules import Rules, rule


@initialised
@final
class Linear(nn.Module):
    """An operator and a bias in place of nn.Linear or, `transposed`, of transformers' Conv1D.

    x (..., in) -> (..., out). State: `operator.*` and `bias`.
    """

    bias: nn.Parameter | None
    origin: Origin | None = None

    def __init__(
        self, operator: Operator, bias: Tensor | None = None, transposed: bool = False
    ) -> None:
        super().__init__()
        self.operator = operator
        self.transposed = transposed
        self.register_parameter("bias", as_bias(bias, operator.shape[0], "Linear.bias"))

    @property
    def in_features(self) -> int:
        return self.operator.shape[1]

    @property
    def out_features(self) -> int:
        return self.operator.shape[0]

    @property
    def weight(self) -> Tensor:
        """The dense matrix as the replaced module stored it: (out, in), or (in, out) transposed."""
        rows, columns = self.operator.shape
        if self.transposed:
            return lazy_dense(self.operator, Tensor.t, (columns, rows))
        if isinstance(self.operator, Dense):
            return self.operator.weight
        return lazy_dense(self.operator, _same, (rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        return apply(self.operator, x, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


_APPLY: Rules = {}


def apply(op: Operator, x: Tensor, bias: Tensor | None) -> Tensor:
    """op(x) + bias, in the dtype of op(x) so that autocast's stays; fused where it can be."""
    fused = _APPLY.get(type(op))
    if fused is None or hasattr(op, "_hf_hook"):
        y: Tensor = op(x)  # accelerate fetches an offloaded leaf in the operator's own forward
        return y if bias is None else y + bias.to(y.dtype)
    out: Tensor = fused(op, x, bias)
    return out


@rule(_APPLY, Dense)
def _apply_dense(op: Dense, x: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, op.weight, _beside(bias, x))


@rule(_APPLY, LowRank)
def _apply_low_rank(op: LowRank, x: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(op.latent(x), op.b, _beside(bias, x))


@rule(_APPLY, Sum)
def _apply_sum(op: Sum, x: Tensor, bias: Tensor | None) -> Tensor:
    first, *others = op.operators
    y = apply(first, x, bias)
    for term in others:
        y = add(y, term, x)
    return y


@rule(_APPLY, RowNormalised)
def _apply_rows(op: RowNormalised, x: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = op.operator(x)
    factor = op.factor().to(y.dtype)
    return y * factor if bias is None else torch.addcmul(bias.to(y.dtype), y, factor)


@rule(_APPLY, Base)
def _apply_base(op: Base, x: Tensor, bias: Tensor | None) -> Tensor:
    dtype = x.dtype if autocasts(x.device) else op.bound.dtype
    y = apply(op.bound, x.to(dtype), bias)
    return y if dtype == x.dtype else y.to(x.dtype)


@rule(_APPLY, Adapted)
def _apply_adapted(op: Adapted, x: Tensor, bias: Tensor | None) -> Tensor:
    if op.plain is not None and op.selection is None:
        dense, low, scale = op.plain
        y, z = F.linear(x, dense.weight, bias), F.linear(x, low.a)
        if y.ndim == 2:
            return torch.addmm(y, z, low.b.mT, alpha=scale)
        rows = y.view(-1, y.shape[-1])
        return torch.addmm(rows, z.view(-1, z.shape[-1]), low.b.mT, alpha=scale).view(y.shape)
    return op.through(lambda view, x: apply(view, x, bias), x)


def _beside(bias: Tensor | None, x: Tensor) -> Tensor | None:
    """The bias in the dtype of x: of half precision, where adapters are computed with wider."""
    if bias is None or bias.dtype == x.dtype or autocasts(x.device):
        return bias
    return bias.to(x.dtype)


def as_bias(bias: Tensor | None, size: int, what: str) -> nn.Parameter | None:
    """`bias` as a parameter: the same object if it is one, frozen otherwise."""
    if bias is None:
        return None
    if bias.shape != (size,) or not bias.is_floating_point():
        raise ValueError(
            f"{what} must be floating point of shape ({size},), "
            f"got {bias.dtype} of shape {tuple(bias.shape)}"
        )
    return bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)


def _same(weight: Tensor) -> Tensor:
    return weight
