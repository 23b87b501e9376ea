from __future__ import annotations

from functools import reduce
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..operators.adapted import Adapted
from ..operators.base import Base
from ..operators.dense import Dense
from ..operators.low_rank import LowRank
from ..operators.operator import Operator
from ..operators.product import Product
from ..operators.scaled import Scaled
from ..operators.sum import Sum
from .lazy import dense_of, lazy_dense
from .linear import as_bias
from .origin import Origin, initialised
from .rules import Rules, rule


@initialised
@final
class Embedding(nn.Module):
    """Rows of an operator of shape (vocab, dim), looked up in factored form.

    ids (...) integers -> (..., dim). `bias` (dim,) is added to every row; `embed_scale`, a scalar
    as Gemma's embeddings hold it, multiplies every row and stays out of the matrix, so that a tied
    head can share the operator.
    """

    bias: nn.Parameter | None
    embed_scale: Tensor | None
    origin: Origin | None = None

    def __init__(
        self,
        operator: Operator,
        padding_idx: int | None = None,
        bias: Tensor | None = None,
        embed_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.operator = operator
        self.padding_idx = padding_idx
        self.register_parameter("bias", as_bias(bias, operator.shape[1], "Embedding.bias"))
        self.register_buffer("embed_scale", embed_scale, persistent=False)

    @property
    def num_embeddings(self) -> int:
        return self.operator.shape[0]

    @property
    def embedding_dim(self) -> int:
        return self.operator.shape[1]

    @property
    def weight(self) -> Tensor:
        """The dense table (vocab, dim), without bias and scale."""
        if isinstance(self.operator, Dense):
            return self.operator.weight
        return lazy_dense(self.operator, lambda table: table, self.operator.shape)

    def forward(self, ids: Tensor) -> Tensor:
        y = rows(self.operator, ids, self.padding_idx)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y if self.embed_scale is None else y * self.embed_scale.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"


_ROWS: Rules = {}


def rows(op: Operator, ids: Tensor, padding_idx: int | None = None) -> Tensor:
    """op.dense()[ids], of shape (..., in), structure by structure where a rule is known.

    The leaves that hold the row `padding_idx` get no gradient from it. The dtype is the leaves'
    also under autocast, as nn.Embedding's is.
    """
    looked_up = _ROWS.get(type(op), _dense_rows)
    out: Tensor = looked_up(op, ids, padding_idx)
    return out.to(op.dtype)


def _dense_rows(op: Operator, ids: Tensor, padding_idx: int | None) -> Tensor:
    return F.embedding(ids, dense_of(op), padding_idx)


@rule(_ROWS, LowRank)
def _low_rank_rows(op: LowRank, ids: Tensor, padding_idx: int | None) -> Tensor:
    return _times_right(op, F.embedding(ids, op.b, padding_idx))


@rule(_ROWS, Base)
def _base_rows(op: Base, ids: Tensor, padding_idx: int | None) -> Tensor:
    return rows(op.bound, ids, padding_idx)


@rule(_ROWS, Adapted)
def _adapted_rows(op: Adapted, ids: Tensor, padding_idx: int | None) -> Tensor:
    return op.through(lambda view, ids: rows(view, ids, padding_idx), ids).to(op.base.dtype)


@rule(_ROWS, Sum)
def _sum_rows(op: Sum, ids: Tensor, padding_idx: int | None) -> Tensor:
    return reduce(torch.add, [rows(term, ids, padding_idx) for term in op.operators])


@rule(_ROWS, Scaled)
def _scaled_rows(op: Scaled, ids: Tensor, padding_idx: int | None) -> Tensor:
    return op.scale * rows(op.operator, ids, padding_idx)


@rule(_ROWS, Product)
def _product_rows(op: Product, ids: Tensor, padding_idx: int | None) -> Tensor:
    first, *others = op.operators
    y = rows(first, ids, padding_idx)
    for factor in others:
        if type(factor) is LowRank:
            y = _times_right(factor, y @ factor.b)
        else:
            y = y @ dense_of(factor).to(y.dtype)  # one that holds no number has no dtype
    return y


def _times_right(op: LowRank, z: Tensor) -> Tensor:  # (..., r) -> (..., in): z diag(gate) a
    if op.gate is not None:
        z = z * op.gate
    if op.mask is not None:
        z = z * op.mask.to(z.dtype)
    return z @ op.a
