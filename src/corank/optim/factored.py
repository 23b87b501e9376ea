"""SMMF: both moments as products of two vectors, over any matrix made square."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..operators.packing import pack, packed_width, unpack
from ..registry import Paper, method
from .transform import Now, State, Transform


def nearly_square(count: int) -> tuple[int, int]:
    """The factors (p, q) of a count, p >= q, that lie nearest to each other."""
    q = next(q for q in range(math.isqrt(count), 0, -1) if count % q == 0)
    return count // q, q


def factored(x: Tensor) -> tuple[Tensor, Tensor]:
    """The non-negative x (..., p, q) as rows (..., p, 1) times columns (..., 1, q).

    Their product has the row and column sums of x.
    """
    rows, columns = x.sum(-1, keepdim=True), x.sum(-2, keepdim=True)
    total = rows.sum(-2, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return rows, columns / total


@method(
    Paper(
        "SMMF: Square-Matricized Momentum Factorization for Memory-Efficient Optimization",
        "2412.08894",
        "the authors' code: decompress, update, compress, with the fresh moments in the step",
        "vectors go through Adam; signs are packed, eight to a byte; the columns' factor is the "
        "one normalised; decay is -0.8, the code's choice for transformers",
    ),
    area="optimize",
    laws=("gradient",),
)
def smmf(growth: float = 0.999, decay: float = -0.8) -> Transform:
    """Adam whose moments are a row times a column each, over the matrix reshaped to a square.

    growth: the first beta is betas[0] * growth^(t - 1). decay: the second is 1 - t^decay. No bias
    is corrected. State: 4 sqrt(mn) numbers and mn bits of signs where mn is a square.
    """
    if not 0 < growth <= 1:
        raise ValueError(f"growth must be in (0, 1], got {growth!r}")
    if not -1 <= decay <= 0:
        raise ValueError(f"decay must be in [-1, 0], got {decay!r}")

    def start(like: Tensor) -> State:
        p, q = nearly_square(like.shape[-2] * like.shape[-1])
        before = like.shape[:-2]
        sides = {"rows": (*before, p, 1), "columns": (*before, 1, q)}
        state = {
            f"{moment}_{side}": like.new_zeros(shape)
            for moment in ("avg", "sq")
            for side, shape in sides.items()
        }
        width = packed_width(p * q, 1)
        return state | {"signs": like.new_zeros((*before, width), dtype=torch.uint8)}

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        p, q = nearly_square(x.shape[-2] * x.shape[-1])
        g = x.reshape(*x.shape[:-2], p, q)
        first = now.options["betas"][0] * growth ** (now.step - 1)
        fresh = float(now.step) ** decay
        size, sq = (
            state[f"{moment}_rows"].to(x.dtype) * state[f"{moment}_columns"].to(x.dtype)
            for moment in ("avg", "sq")
        )
        signs = unpack(state["signs"], 1, p * q).reshape(g.shape).to(x.dtype) * 2 - 1
        avg = (size * signs).lerp(g, 1 - first)
        sq = sq.lerp(g.square(), fresh)
        kept = {"signs": pack((avg >= 0).flatten(-2), 1)}
        for moment, value in (("avg", avg.abs()), ("sq", sq)):
            for side, factor in zip(("rows", "columns"), factored(value), strict=True):
                name = f"{moment}_{side}"
                kept[name] = factor.to(state[name].dtype)
        out = avg / (sq.sqrt() + now.options["eps"])
        return out.reshape(x.shape), state | kept

    return Transform(start, update)
