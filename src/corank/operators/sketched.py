from __future__ import annotations

import math
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix
from .skeleton import storable
from .transpose import adjoint

SIDES = ("features", "tokens")


@storable
@final
class Sketched(Operator):
    """W, whose backward pass keeps a random sketch of the inputs in their place.

    `weight` (out, in). For inputs X (tokens, in) and a Gaussian P with E[P P^T] = I, X P is kept by
    `features` and P^T X by `tokens`: a share `ratio` of X. The gradient of the inputs is exact,
    that of the weight an estimate without bias. P is never stored: it is drawn again from `seed`
    and the count of `passes`, another one after each `every` of them. With a ratio of 1, a frozen
    weight, or outside of training nothing is sketched.
    """

    passes: Tensor
    numbers_held = {"passes": 0}  # noqa: RUF012

    def __init__(
        self,
        weight: Tensor,
        side: Literal["features", "tokens"] = "features",
        ratio: float = 0.25,
        every: int = 1,
        seed: int = 0,
        passes: Tensor | None = None,
    ) -> None:
        super().__init__()
        require_matrix(weight, "Sketched.weight")
        if side not in SIDES:
            raise ValueError(f"Sketched.side must be one of {', '.join(SIDES)}, got {side!r}")
        if not 0 < ratio <= 1:
            raise ValueError(f"Sketched.ratio must be over 0 and at most 1, got {ratio!r}")
        if every < 1:
            raise ValueError(f"Sketched.every must be at least 1, got {every!r}")
        self.shape = (weight.shape[0], weight.shape[1])
        self.weight = leaf(weight)
        self.side, self.ratio, self.every, self.seed = side, ratio, every, seed
        count = torch.zeros((), dtype=torch.int64) if passes is None else passes
        self.register_buffer("passes", count)

    def forward(self, x: Tensor) -> Tensor:
        if self.ratio == 1 or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return F.linear(x, self.weight)
        return self._sketched(x)

    @torch.compiler.disable
    def _sketched(self, x: Tensor) -> Tensor:
        # A copy that is kept like the sketch: checkpointing sketches twice, each time differently.
        epoch = self.passes // self.every
        self.passes.add_(1)
        size = self.shape[1] if self.side == "features" else math.prod(x.shape[:-1])
        width = max(1, round(self.ratio * size))
        y: Tensor = _Product.apply(x, self.weight, epoch, self.side, (size, width), self.seed)
        return y

    def dense(self) -> Tensor:
        return self.weight

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.shape[0] * self.shape[1]


class _Product(torch.autograd.Function):
    """x @ weight.T, keeping x P or P^T x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        epoch: Tensor,
        side: str,
        size: tuple[int, int],
        seed: int,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        p = _drawn(size, seed, epoch, rows)
        kept = rows @ p if side == "features" else p.mT @ rows
        ctx.save_for_backward(kept, weight, epoch)
        ctx.side, ctx.size, ctx.seed = side, size, seed
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        kept, weight, epoch = ctx.saved_tensors
        rows, kept = dy.flatten(0, -2), kept.to(dy.dtype)
        p = _drawn(ctx.size, ctx.seed, epoch, rows)
        dx = dy @ weight.to(dy.dtype) if ctx.needs_input_grad[0] else None
        dw = rows.mT @ kept @ p.mT if ctx.side == "features" else (p.mT @ rows).mT @ kept
        return dx, dw.to(weight.dtype), None, None, None, None


def _drawn(size: tuple[int, int], seed: int, epoch: Tensor, like: Tensor) -> Tensor:
    """P (size, width) of variance 1 / width, the same on every device."""
    mixed = (seed + 0x9E3779B97F4A7C15 * (1 + int(epoch))) % 2**63
    generator = torch.Generator().manual_seed(mixed)
    p = torch.randn(size, generator=generator) / math.sqrt(size[1])
    return p.to(like.device, like.dtype)


@adjoint.register
def _adjoint(op: Sketched, x: Tensor) -> Tensor:
    return x @ op.weight


@dense_flops.register
def _dense_flops(op: Sketched) -> int:
    return 0
