"""The proximal step of an absolute value: what makes exact zeros."""

from __future__ import annotations

from torch import Tensor


def soft_threshold(leaf: Tensor, threshold: float) -> None:
    """Move every entry towards zero by `threshold`, and not beyond; in place."""
    leaf.data.copy_(leaf.data.sign() * (leaf.data.abs() - threshold).clamp_min(0))
