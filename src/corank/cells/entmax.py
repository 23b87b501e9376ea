"""A softmax whose small outputs are exactly zero."""

from __future__ import annotations

import torch
from torch import Tensor


def entmax15(x: Tensor) -> Tensor:  # (..., n) -> (..., n)
    """The 1.5-entmax over the last axis: max(x / 2 - t, 0)^2 with t such that it sums to one.

    By sorting, as Peters, Niculae and Martins, arXiv 1905.05702, describe.
    """
    half = x / 2
    half = half - half.amax(-1, keepdim=True).detach()
    ordered = half.sort(dim=-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    mean = ordered.cumsum(-1) / counts
    spread = counts * (ordered.square().cumsum(-1) / counts - mean.square())
    # The root of zero has no gradient; a threshold so far down is never the one that is taken.
    room = ((1 - spread) / counts).clamp_min(torch.finfo(x.dtype).tiny)
    threshold = mean - room.sqrt()
    support = (threshold <= ordered).sum(-1, keepdim=True)
    return (half - threshold.gather(-1, support - 1)).clamp_min(0).square()
