from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .csr import csr_adjoint, csr_linear
from .operator import Operator, leaf, require_index, require_vector
from .precision import autocasts
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint

#: Up to this share of stored numbers the CSR product is used (measured on CPU, 1024 x 1024, 1 to
#: 512 tokens: 1.3 to 9 times faster than a dense product up to it, slower at twice it).
CSR_DENSITY = 0.1


@storable
@final
class Sparse(Operator):
    """A matrix with a fixed support: W.flatten()[index] = values, zero elsewhere.

    `values` (n,), `index` (n,) int32 or int64, ascending, each at most once, in 0..out*in - 1.
    The product is by compressed rows where the density n / (out in) is at most `CSR_DENSITY` and
    the values are fp32 or fp64 outside autocast (there is no half precision kernel everywhere),
    else through the matrix, which is made again in the backward pass.
    """

    numbers_held = MappingProxyType({"index": 0})

    index: Tensor

    def __init__(self, values: Tensor, index: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        require_vector(values, "Sparse.values")
        require_index(index, "Sparse.index")
        if values.shape != index.shape:
            raise ValueError(
                f"Sparse: {values.shape[0]} values but {index.shape[0]} indices; they must agree"
            )
        if index.dtype == torch.int32 and shape[0] * shape[1] > 2**31:
            raise ValueError(f"Sparse: a flat index into {tuple(shape)} needs int64, got int32")
        self.shape = (shape[0], shape[1])
        self.values = leaf(values)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        if self._rows_pay(x):
            return csr_linear(x, self.values, self.index, *self.shape)
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        out, into = self.shape
        flat = self.values.new_zeros(out * into)
        return flat.index_copy(0, self.index.long(), self.values).view(out, into)

    def flops(self, tokens: int) -> int:
        kept = self.values.shape[0] if self._compressed() else self.shape[0] * self.shape[1]
        return 2 * tokens * kept

    def _rows_pay(self, x: Tensor) -> bool:
        return self._compressed() and x.dtype == self.values.dtype and not autocasts(x.device)

    def _compressed(self) -> bool:
        wide = self.values.dtype in (torch.float32, torch.float64)
        density = self.values.shape[0] / max(1, self.shape[0] * self.shape[1])
        return wide and density <= CSR_DENSITY


def sparsify(weight: Tensor, kept: Tensor) -> Sparse:
    """The Sparse of `weight` (out, in) at the places where `kept` (out, in) bool is True."""
    if kept.dtype != torch.bool or kept.shape != weight.shape:
        kind = f"{kept.dtype} of shape {tuple(kept.shape)}"
        raise ValueError(f"kept must be bool of shape {tuple(weight.shape)}, got {kind}")
    index = kept.flatten().nonzero().squeeze(1)
    if weight.numel() <= 2**31:
        index = index.int()
    values = weight.detach().flatten().index_select(0, index)
    return Sparse(values, index, (weight.shape[0], weight.shape[1]))


@adjoint.register
def _adjoint(op: Sparse, x: Tensor) -> Tensor:
    if op._rows_pay(x):
        return csr_adjoint(x, op.values, op.index, *op.shape)
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: Sparse) -> int:
    return 0
