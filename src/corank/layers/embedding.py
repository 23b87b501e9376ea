from __future__ import annotations

from functools import singledispatch
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from ..operators.dense import Dense
from ..operators.low_rank import LowRank
from ..operators.operator import Operator
from .lazy import dense_of, lazy_dense
from .linear import as_bias
from .origin import Origin, initialised


@initialised
@final
class Embedding(nn.Module):
    """Rows of an operator of shape (vocab, dim), looked up in factored form.

    ids (...) integers -> (..., dim). `bias` (dim,) is added to every row; `embed_scale`, a scalar
    as Gemma's embeddings hold it, multiplies every row and stays out of the matrix, so that a tied
    head can share the operator.
    """

    bias: Tensor | None
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


@singledispatch
def rows(op: Operator, ids: Tensor, padding_idx: int | None = None) -> Tensor:
    """op.dense()[ids], of shape (..., in): the row `padding_idx` gets no gradient."""
    return F.embedding(ids, dense_of(op), padding_idx)


@rows.register
def _(op: LowRank, ids: Tensor, padding_idx: int | None = None) -> Tensor:
    z = F.embedding(ids, op.b, padding_idx)  # (..., r)
    if op.gate is not None:
        z = z * op.gate
    if op.mask is not None:
        z = z * op.mask.to(z.dtype)
    return (z @ op.a).to(z.dtype)  # autocast must not lower what nn.Embedding keeps
