from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .convolve import convolve, convolve_flops
from .operator import Operator, leaf, require_vector
from .skeleton import storable
from .transpose import transpose


@storable
@final
class Toeplitz(Operator):
    """A symmetric Toeplitz matrix, W[i, j] = column[|i - j|]. `column` (d,)."""

    def __init__(self, column: Tensor) -> None:
        super().__init__()
        require_vector(column, "Toeplitz.column")
        self.shape = (column.shape[0], column.shape[0])
        self.column = leaf(column)

    def forward(self, x: Tensor) -> Tensor:
        # The first columns of the circulant of 2 d, whose column runs up and down again.
        around = torch.cat((self.column, self.column[:1], self.column[1:].flip(0)))
        return convolve(x, around, 2 * self.shape[0])[..., : self.shape[0]]

    def dense(self) -> Tensor:
        place = torch.arange(self.shape[0], device=self.column.device)
        return self.column[(place[:, None] - place).abs()]

    def flops(self, tokens: int) -> int:
        return convolve_flops(tokens, 2 * self.shape[0])


@transpose.register
def _transpose(op: Toeplitz) -> Operator:
    return op
