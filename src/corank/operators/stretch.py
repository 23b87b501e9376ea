from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Stretch(Operator):
    """Every input out / in times in a row; the first ones once more, where that leaves a rest.

    Its transpose sums neighbours. It holds no numbers: `dense()` is in torch's default dtype.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (shape[0], shape[1])

    def forward(self, x: Tensor) -> Tensor:
        times, more = divmod(self.shape[0], self.shape[1])
        first = x[..., :more].repeat_interleave(times + 1, -1)
        return torch.cat((first, x[..., more:].repeat_interleave(times, -1)), -1)

    def dense(self) -> Tensor:
        eye = torch.eye(self.shape[1], dtype=self.dtype)
        return self(eye).mT

    def flops(self, tokens: int) -> int:
        return tokens * max(0, self.shape[0] - self.shape[1])  # of the transpose; this one copies


@adjoint.register
def _adjoint(op: Stretch, x: Tensor) -> Tensor:
    times, more = divmod(op.shape[0], op.shape[1])
    lead, ends = x.shape[:-1], more * (times + 1)
    first = x[..., :ends].reshape(*lead, more, times + 1).sum(-1)
    rest = x[..., ends:].reshape(*lead, op.shape[1] - more, times).sum(-1)
    return torch.cat((first, rest), -1)


@dense_flops.register
def _dense_flops(op: Stretch) -> int:
    return 0
