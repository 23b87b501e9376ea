from __future__ import annotations

from math import prod
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf
from .skeleton import storable


@storable
@final
class TensorExperts(Operator):
    """b a / r of one task: factors of tensor products, mixed by the task's weights.

    `a` (orders, experts, r, p) and `b` (orders, experts, r, q): a rank's row of expert s is the
    Kronecker product of its vectors over the orders, cut to in (out) numbers; pairs of vectors are
    multiplied and normalised over (r, p^2) first. `logits` (tasks, experts) mix whole experts, or
    (tasks, orders, experts) the vectors of each order before they are multiplied; weights are
    their sigmoids, divided by their sum. `task` is the row in use (TensorPoly, arXiv 2405.16671).
    """

    def __init__(
        self, a: Tensor, b: Tensor, logits: Tensor, shape: tuple[int, int], task: int = 0
    ) -> None:
        super().__init__()
        orders, experts = a.shape[:2]
        if a.shape[:3] != b.shape[:3] or orders not in (2, 4):
            raise ValueError(
                f"TensorExperts: a {tuple(a.shape)} and b {tuple(b.shape)} must agree in 2 or 4 "
                "orders, in experts and in rank"
            )
        if tuple(logits.shape[1:]) not in ((experts,), (orders, experts)):
            raise ValueError(
                f"TensorExperts.logits must be (tasks, {experts}) or (tasks, {orders}, {experts}), "
                f"got {tuple(logits.shape)}"
            )
        if a.shape[3] ** orders < shape[1] or b.shape[3] ** orders < shape[0]:
            raise ValueError(f"TensorExperts: the tensor products are too short for {shape}")
        if not 0 <= task < logits.shape[0]:
            raise ValueError(f"TensorExperts: task {task} is outside 0 to {logits.shape[0] - 1}")
        self.shape = (shape[0], shape[1])
        self.a, self.b, self.logits, self.task = leaf(a), leaf(b), leaf(logits), task

    def factors(self) -> tuple[Tensor, Tensor]:  # (out, r), (r, in)
        """Two matrices whose product is W; 1 / r is in the right one."""
        weights = self.logits[self.task].sigmoid()
        weights = weights / weights.sum(-1, keepdim=True)
        a, b = (
            _factor(t, weights, n) for t, n in ((self.a, self.shape[1]), (self.b, self.shape[0]))
        )
        return b.mT, a / a.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        b, a = self.factors()
        return F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))

    def dense(self) -> Tensor:
        b, a = self.factors()
        return b @ a

    def flops(self, tokens: int) -> int:
        return self._making() + 2 * tokens * self.a.shape[2] * sum(self.shape)

    def _making(self) -> int:
        orders, experts, rank = self.a.shape[:3]
        return 3 * experts * rank * sum(t.shape[3] ** orders for t in (self.a, self.b))


def _factor(vectors: Tensor, weights: Tensor, length: int) -> Tensor:  # (r, length)
    if weights.ndim == 2:  # each order's vectors are mixed, then multiplied once
        vectors = torch.einsum("os,osrq->orq", weights, vectors)[:, None]
    pairs = [_pair(vectors[i], vectors[i + 1]) for i in range(0, vectors.shape[0], 2)]
    rows = pairs[0] if len(pairs) == 1 else _outer(pairs[0], pairs[1])
    rows = rows[..., :length]
    return rows[0] if weights.ndim == 2 else torch.einsum("s,srd->rd", weights, rows)


def _pair(one: Tensor, two: Tensor) -> Tensor:  # (s, r, q), (s, r, q) -> (s, r, q^2)
    product = _outer(one, two)
    return F.layer_norm(product, product.shape[1:])


def _outer(one: Tensor, two: Tensor) -> Tensor:
    return (one[..., :, None] * two[..., None, :]).flatten(-2)


@dense_flops.register
def _dense_flops(op: TensorExperts) -> int:
    return op._making() + 2 * op.a.shape[2] * prod(op.shape)
