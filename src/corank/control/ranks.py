"""What can be done to the ranks of a low-rank product that are not wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import LowRank


def zero(op: LowRank, kept: Tensor) -> None:
    """Set the gates of the others to zero: they may regrow. `kept` (r,) bool."""
    if op.gate is None:
        raise ValueError("ranks are zeroed only where the product was made with a gate")
    op.gate.data.masked_fill_(~kept, 0)


def mask(op: LowRank, kept: Tensor) -> None:
    """Let the others take no part: they get no gradient. `kept` (r,) bool."""
    if op.mask is None:
        raise ValueError("ranks are masked only where the product was made with a mask")
    op.mask.copy_(kept)


def truncate(op: LowRank, rank: int) -> None:
    """Let the first `rank` ranks act alone; by a frozen gate they make up for the others.

    Such a gate holds R / rank for R ranks in all, so that its sum is R whatever acts; ranks
    without one are masked.
    """
    if not 1 <= rank <= op.rank:
        raise ValueError(f"rank {rank} is outside 1 to {op.rank}")
    first = torch.arange(op.rank, device=op.a.device) < rank
    if op.gate is None:
        mask(op, first)
    else:
        everything = float(op.gate.detach().sum().round())
        op.gate.data.copy_(first * (everything / rank))
