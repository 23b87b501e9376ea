from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Cycle(Operator):
    """Output i is input i mod in: x over and over again, or its beginning where out < in.

    Its transpose sums the input in blocks. It holds no numbers: `dense()` is in torch's default
    dtype.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (shape[0], shape[1])

    def forward(self, x: Tensor) -> Tensor:
        out, into = self.shape
        if out <= into:
            return x[..., :out]
        return torch.cat([x] * (out // into) + [x[..., : out % into]], -1)

    def dense(self) -> Tensor:
        out, into = self.shape
        return torch.eye(into, dtype=self.dtype)[torch.arange(out) % into]

    def flops(self, tokens: int) -> int:
        return tokens * max(0, self.shape[0] - self.shape[1])  # of the transpose; this one copies


@adjoint.register
def _adjoint(op: Cycle, x: Tensor) -> Tensor:
    out, into = op.shape
    blocks = -(-out // into)
    x = F.pad(x, (0, blocks * into - out))
    return x if blocks == 1 else x.unflatten(-1, (blocks, into)).sum(-2)


@dense_flops.register
def _dense_flops(op: Cycle) -> int:
    return 0
