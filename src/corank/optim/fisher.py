"""M-FAC: the natural gradient of the last gradients, without a Fisher matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Paper, method
from .refreshing import require_at_least
from .transform import Now, State, Transform


@method(
    Paper(
        "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information",
        "2107.03356",
        "the dynamic algorithm: the inverse of lambda I + mean of g g^T over a window, times the "
        "newest g, by Woodbury's identity (abstract; the sections were not read)",
        "each matrix has a Fisher matrix of its own, so that it is block-diagonal; the window is "
        "of 32 gradients; before it is full the mean is over those that there are; the small "
        "system is solved anew at each step, in float64",
    ),
    area="optimize",
    laws=("gradient",),
)
def mfac(window: int = 32, damping: float = 1e-5) -> Transform:
    """The newest gradient times the inverse of lambda I + the mean of g g^T over the last ones.

    window: how many gradients are kept, each as large as its matrix. damping: lambda.
    """
    require_at_least(1, window=window)
    if not damping > 0:
        raise ValueError(f"damping must be above 0, got {damping!r}")

    def start(like: Tensor) -> State:
        before, numel = like.shape[:-2], like.shape[-2] * like.shape[-1]
        exact = torch.promote_types(like.dtype, torch.float32)
        return {
            "gradients": like.new_zeros(*before, window, numel),
            "gram": like.new_zeros((*before, window, window), dtype=exact),
        }

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        kept, gram = state["gradients"], state["gram"]
        place = (now.step - 1) % window
        kept[..., place, :] = x.flatten(-2).to(kept.dtype)
        rows = kept.to(x.dtype)
        products = (rows @ rows[..., place, :, None]).squeeze(-1).to(gram.dtype)
        gram[..., place, :] = products
        gram[..., :, place] = products
        # (lambda I + G^T G / k)^-1 G^T = G^T (lambda I + G G^T / k)^-1, and g is a row of G.
        small = gram.double() / min(now.step, window)
        small.diagonal(dim1=-2, dim2=-1).add_(damping)
        newest = torch.zeros_like(small[..., :1])
        newest[..., place, :] = 1.0
        weights = torch.linalg.solve(small, newest).to(x.dtype)
        return (rows.mT @ weights).reshape(x.shape), state

    return Transform(start, update)
