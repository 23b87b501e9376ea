from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, require_operators
from .skeleton import storable
from .through import apply_dense


@storable
@final
class ScoreMasked(Operator):
    """W without the entries whose scores are least: `dropped` (1,) int64 says how many go.

    The scores are |W| + `score`. In the backward pass the mask passes its gradient straight to
    them (PST, arXiv 2205.11005), so that |W| carries gradient to W in two ways.
    """

    numbers_held = MappingProxyType({"dropped": 0})

    dropped: Tensor

    def __init__(self, operator: Operator, score: Operator, dropped: Tensor) -> None:
        super().__init__()
        require_operators((operator, score), "ScoreMasked")
        if operator.shape != score.shape:
            raise ValueError(
                f"ScoreMasked needs operators of one shape, got {operator.shape} and {score.shape}"
            )
        if dropped.dtype != torch.int64 or tuple(dropped.shape) != (1,):
            raise ValueError(f"ScoreMasked.dropped must be one int64, got {dropped.dtype}")
        self.shape = operator.shape
        self.operator, self.score = operator, score
        self.register_buffer("dropped", dropped)

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        weight = self.operator.dense()
        scores = weight.abs() + self.score.dense()
        order = scores.detach().flatten().argsort(stable=True)
        places = torch.arange(order.shape[0], device=order.device)
        kept = torch.zeros_like(weight).flatten()
        kept = kept.scatter(0, order, (places >= self.dropped).to(weight.dtype)).view(self.shape)
        return weight * (kept + (scores - scores.detach()))

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@dense_flops.register
def _dense_flops(op: ScoreMasked) -> int:
    return dense_flops(op.operator) + dense_flops(op.score) + 5 * op.shape[0] * op.shape[1]
