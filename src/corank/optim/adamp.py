"""AdamP: no update along weights whose length makes no difference."""

from __future__ import annotations

import math

from torch import Tensor

from ..registry import Paper, method
from .decaying import spared
from .inner import adam
from .refreshing import require_at_least
from .transform import Now, State, Transform

_Axes = tuple[int, ...]
_ROWS, _WHOLE = (-1,), (-2, -1)


@method(
    Paper(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        "2006.08217",
        "algorithm 2, with the authors' defaults and their test of rows first, then of the whole",
        "without Nesterov's momentum; a gradient of zero does not count as one across the weight",
    ),
    area="optimize",
    laws=("gradient",),
)
def adamp(delta: float = 0.1, wd_ratio: float = 0.1) -> Transform:
    """Adam without the part along weights that the gradient says are scale-invariant.

    delta: a weight of n numbers is, where |cos(gradient, weight)| < delta / sqrt(n).
    wd_ratio: the share of the weight decay that such weights keep.
    """
    require_at_least(0, delta=delta, wd_ratio=wd_ratio)
    inner = adam()

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        out, state = inner.update(x, state, now)
        weight, eps = now.weight.to(x.dtype), now.options["eps"]
        by_row = _invariant(x, weight, _ROWS, delta, eps)
        as_one = _invariant(x, weight, _WHOLE, delta, eps)
        across = _across(out, weight, _WHOLE, eps).where(as_one, out)
        across = _across(out, weight, _ROWS, eps).where(by_row, across)
        kept = (by_row | as_one).to(x.dtype) * (1 - wd_ratio)
        return spared(across, kept, now), state

    return Transform(inner.start, update, inner.carry)


def _invariant(
    x: Tensor, weight: Tensor, axes: tuple[int, ...], delta: float, eps: float
) -> Tensor:
    """Whether the gradient is across every row, or the whole, of each matrix: (..., 1, 1)."""
    lengths = [t.square().sum(axes, keepdim=True).sqrt() for t in (x, weight)]
    cosines = (x * weight).sum(axes, keepdim=True).abs() / (lengths[0] + eps) / (lengths[1] + eps)
    numbers = math.prod(x.shape[axis] for axis in axes)
    across = cosines.amax(_WHOLE, keepdim=True) < delta / math.sqrt(numbers)
    return across & (lengths[0].amax(_WHOLE, keepdim=True) > 0)


def _across(out: Tensor, weight: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    along = weight / (weight.square().sum(axes, keepdim=True).sqrt() + eps)
    return out - along * (along * out).sum(axes, keepdim=True)
