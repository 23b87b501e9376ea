from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .operator import Operator
from .skeleton import storable
from .transpose import adjoint

#: Of the rotary position embedding (Su et al., arXiv 2104.09864).
BASE = 10000.0


@storable
@final
class Rope(Operator):
    """Chunk t of x, of even `size`, turned by the angles t * 10000^(-2 j / size).

    Entry j turns with entry j + size / 2, as rotary position embeddings do. It holds no numbers:
    `dense()` is in torch's default dtype.
    """

    def __init__(self, chunks: int, size: int) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"Rope.size must be even, got {size}")
        self.shape = (chunks * size, chunks * size)
        self.chunks, self.size = chunks, size

    def forward(self, x: Tensor) -> Tensor:
        return self._turn(x, 1.0)

    def dense(self) -> Tensor:
        return self(torch.eye(self.shape[0], dtype=self.dtype)).mT

    def flops(self, tokens: int) -> int:
        return 3 * tokens * self.shape[0]

    def _turn(self, x: Tensor, sign: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        places = torch.arange(max(self.chunks, self.size), device=x.device).to(wide)
        rates = BASE ** (-2 * places[: self.size // 2] / self.size)
        angles = sign * places[: self.chunks, None] * rates
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        left, right = x.unflatten(-1, (self.chunks, self.size)).chunk(2, -1)
        turned = torch.cat((left * cos - right * sin, right * cos + left * sin), -1)
        return turned.flatten(-2)


@adjoint.register
def _adjoint(op: Rope, x: Tensor) -> Tensor:
    return op._turn(x, -1.0)
