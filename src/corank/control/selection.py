"""Which of many are kept, by their scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def global_top(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Where the `budget` highest of all scores stand; a tie with the first dropped is dropped."""
    together = torch.cat([s.flatten() for s in scores.values()])
    dropped = together.numel() - budget
    if dropped <= 0:
        return {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}
    threshold = together.kthvalue(dropped).values
    return {name: s > threshold for name, s in scores.items()}


def top_share(scores: Tensor, share: float, axis: int) -> Tensor:
    """Where the highest `share` of the scores along `axis` stand; ties with the last are kept."""
    size = scores.shape[axis]
    dropped = int(size * (1 - share))
    if dropped <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if dropped >= size:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(dropped + 1, dim=axis, keepdim=True).values
    return scores >= threshold
