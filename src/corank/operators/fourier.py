from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .harmonics import harmonics, transposed
from .operator import Operator, leaf, require_index, require_vector
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Fourier(Operator):
    """scale * Re ifft2(S), of few frequencies: S (out, in) has `values` at the flat `index`.

    `values` (k,) real, `index` (k,) int32 or int64, each at most once. It is applied through the
    transform of x; the matrix is not made.
    """

    numbers_held = MappingProxyType({"index": 0})

    index: Tensor

    def __init__(
        self, values: Tensor, index: Tensor, shape: tuple[int, int], scale: float = 1.0
    ) -> None:
        super().__init__()
        require_vector(values, "Fourier.values")
        require_index(index, "Fourier.index")
        if values.shape != index.shape:
            raise ValueError(
                f"Fourier: {values.shape[0]} values but {index.shape[0]} indices; they must agree"
            )
        self.shape = (shape[0], shape[1])
        self.values, self.scale = leaf(values), scale
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return self._transformed(x, self.index.long(), *self.shape)

    def dense(self) -> Tensor:
        out, into = self.shape
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        flat = values.new_zeros(out * into).index_copy(0, self.index.long(), self.scale * values)
        return torch.fft.ifft2(flat.view(out, into)).real.to(self.values.dtype)

    def flops(self, tokens: int) -> int:
        transforms = sum(5 * n * max(1, n.bit_length() - 1) // 2 for n in self.shape)
        kept = self.values.shape[0]
        return kept + tokens * (transforms + 4 * kept)

    def _transformed(self, x: Tensor, index: Tensor, out: int, into: int) -> Tensor:
        # There is no transform of half precision numbers on every device.
        dtype = torch.promote_types(x.dtype, torch.float32)
        return harmonics(x.to(dtype), self.scale * self.values.to(dtype), index, out, into).to(
            x.dtype
        )


@adjoint.register
def _adjoint(op: Fourier, x: Tensor) -> Tensor:
    out, into = op.shape
    return op._transformed(x, transposed(op.index.long(), out, into), into, out)
