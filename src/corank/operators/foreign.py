from __future__ import annotations

import copy
from typing import Any, final

import torch
from torch import Tensor, nn

from .cost import dense_flops
from .operator import Operator
from .through import apply_dense


@final
class Foreign(Operator):
    """The matrix of a linear module in another library's format, known only by what it computes.

    `module` takes x (..., in) to (..., out); a bias that it has is left out and stays its owner's.
    Where nothing is recorded the module's own product is used; in training the matrix is made
    anew in each pass, so that gradients reach x whatever the format (ModuLoRA, arXiv 2309.16119).
    It belongs to its library and is stored by it: it has no skeleton.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (shape[0], shape[1])
        alone = copy.copy(module)
        alone._parameters = dict(module._parameters)
        if "bias" in alone._parameters:
            alone._parameters["bias"] = None
        self.module = alone

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return apply_dense(self, x)
        y: Tensor = self.module(x)
        return y

    @torch.no_grad()
    def dense(self) -> Tensor:
        weight: Any = self.module._parameters.get("weight")
        if weight is not None and knows_its_values(weight):
            values: Tensor = weight.dequantize()
            return values
        eye = torch.eye(self.shape[1], dtype=self.dtype, device=self.device)
        columns: Tensor = self.module(eye)
        return columns.mT

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.shape[0] * self.shape[1]


def knows_its_values(weight: Tensor) -> bool:
    """Whether a tensor's own class, not torch's, says how to dequantise it."""
    kinds = type(weight.data).__mro__
    return any("dequantize" in vars(kind) for kind in kinds[: kinds.index(Tensor)])


@dense_flops.register
def _dense_flops(op: Foreign) -> int:
    return 2 * op.shape[0] * op.shape[1]
