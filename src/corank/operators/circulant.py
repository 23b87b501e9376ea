from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .convolve import convolve, convolve_flops, correlate
from .operator import Operator, leaf, require_vector
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Circulant(Operator):
    """W[i, j] = c[(i - j) mod d] with c = `column` (d,), times `gate` (d,) where that is given.

    `skew`: what wraps around changes its sign.
    """

    def __init__(self, column: Tensor, gate: Tensor | None = None, skew: bool = False) -> None:
        super().__init__()
        require_vector(column, "Circulant.column")
        if gate is not None:
            require_vector(gate, "Circulant.gate", column.shape[0])
        self.shape = (column.shape[0], column.shape[0])
        self.column, self.skew = leaf(column), skew
        self.gate = None if gate is None else leaf(gate)

    def forward(self, x: Tensor) -> Tensor:
        d = self.shape[0]
        if not self.skew:
            return convolve(x, self._kernel(), d)
        y = convolve(x, self._kernel(), 2 * d)
        return y[..., :d] - y[..., d:]

    def dense(self) -> Tensor:
        d, kernel = self.shape[0], self._kernel()
        place = torch.arange(d, device=kernel.device)
        lag = place[:, None] - place
        w = kernel[lag % d]
        return torch.where(lag < 0, -w, w) if self.skew else w

    def flops(self, tokens: int) -> int:
        d = self.shape[0]
        gated, folded = (self.gate is not None) * d, self.skew * tokens * d
        return gated + folded + convolve_flops(tokens, (1 + self.skew) * d)

    def _kernel(self) -> Tensor:
        return self.column if self.gate is None else self.column * self.gate


@adjoint.register
def _adjoint(op: Circulant, x: Tensor) -> Tensor:
    d = op.shape[0]
    if not op.skew:
        return correlate(x, op._kernel(), d)
    return correlate(torch.cat((x, -x), -1), op._kernel(), 2 * d)[..., :d]
