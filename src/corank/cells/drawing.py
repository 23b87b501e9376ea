"""Leaves of cells, drawn from one generator."""

from __future__ import annotations

import torch
from torch import nn


def uniform(generator: torch.Generator, *shape: int, bound: float | None = None) -> nn.Parameter:
    """A leaf of numbers uniform within +-bound, by default 1 / sqrt(last size)."""
    limit = shape[-1] ** -0.5 if bound is None else bound
    return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * limit)


def require_sizes(what: str, **sizes: int) -> None:
    """Refuse a size under 1, by its name."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{what}: {name}={size} must be at least 1")
