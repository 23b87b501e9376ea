from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_operators, require_vector
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Observed(Operator):
    """W, that remembers how large its inputs have been while training.

    `square_mean` (in,) is the moving mean of x^2 over the batches seen in training mode, each
    weighing 1 - `beta`. Only `forward` observes, with gradients or without, and not again where
    gradient checkpointing repeats it in the backward pass.
    """

    numbers_held = MappingProxyType({"square_mean": 0})

    square_mean: Tensor

    def __init__(self, operator: Operator, square_mean: Tensor, beta: float) -> None:
        super().__init__()
        require_operators((operator,), "Observed")
        require_vector(square_mean, "Observed.square_mean", operator.shape[1])
        self.shape = operator.shape
        self.operator, self.beta = operator, beta
        self.register_buffer("square_mean", square_mean)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() and not _in_backward():
            now = x.detach().reshape(-1, x.shape[-1]).to(self.square_mean.dtype).square().mean(0)
            with torch.no_grad():
                self.square_mean.lerp_(now, 1 - self.beta)
        y: Tensor = self.operator(x)
        return y

    def dense(self) -> Tensor:
        return self.operator.dense()

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens)


def _in_backward() -> bool:
    if torch.compiler.is_compiling():  # which recomputes no change of a buffer
        return False
    return torch._C._current_graph_task_id() != -1


@adjoint.register
def _adjoint(op: Observed, x: Tensor) -> Tensor:
    return adjoint(op.operator, x)


@dense_flops.register
def _dense_flops(op: Observed) -> int:
    return dense_flops(op.operator)
