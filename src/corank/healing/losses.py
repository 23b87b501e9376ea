"""How far a healed model is from the original, as differentiable numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..operators import Operator


def feature_loss(
    features: Sequence[Tensor], wanted: Sequence[Tensor], mask: Tensor | None
) -> Tensor:
    """Mean over the blocks of their squared error relative to the original's mean square.

    features, wanted: (batch, tokens, width) each; mask (batch, tokens), nonzero where it counts.
    """
    losses = []
    for mine, theirs in zip(features, wanted, strict=True):
        if mask is not None and mask.shape == mine.shape[: mask.ndim]:
            mine, theirs = mine[mask], theirs[mask]
        losses.append(
            (mine.float() - theirs.float()).square().mean() / theirs.float().square().mean()
        )
    return torch.stack(losses).mean()


def channel_loss(
    features: Sequence[Tensor], wanted: Sequence[Tensor], mask: Tensor | None
) -> Tensor:
    """Mean over the blocks of how far their channels' statistics over the tokens are apart.

    That is the mean over channels of |difference of means| + |difference of variances|, in units of
    the original features' root mean square (Norm Tweaking, arXiv 2309.02784, its L_dist).
    """
    losses = []
    for mine, theirs in zip(features, wanted, strict=True):
        if mask is not None and mask.shape == mine.shape[: mask.ndim]:
            mine, theirs = mine[mask], theirs[mask]
        size = theirs.float().square().mean().sqrt()
        one, two = ((x.float() / size).flatten(0, -2) for x in (mine, theirs))
        means = (one.mean(0) - two.mean(0)).abs()
        variances = (one.var(0, correction=0) - two.var(0, correction=0)).abs()
        losses.append((means + variances).mean())
    return torch.stack(losses).mean()


def output_loss(mine: Tensor, theirs: Tensor, mask: Tensor | None, logits: bool) -> Tensor:
    """KL(original || healed) per token for logits, else the relative squared error."""
    if not logits:
        return feature_loss([mine], [theirs], mask)
    if mask is not None and mask.shape == mine.shape[:-1]:
        mine, theirs = mine[mask], theirs[mask]
    expected = F.log_softmax(theirs.float(), -1).flatten(0, -2)
    found = F.log_softmax(mine.float(), -1).flatten(0, -2)
    return F.kl_div(found, expected, reduction="batchmean", log_target=True)


def perturbation_loss(pairs: Iterable[tuple[Operator, Tensor]], epsilon: float) -> Tensor:
    """Mean over the weights of max(0, max|W' - W| - epsilon)^2 (PELA, arXiv 2310.10700)."""
    losses = [
        ((op.dense() - weight.to(op.dtype)).abs().amax() - epsilon).clamp_min(0).square()
        for op, weight in pairs
    ]
    return torch.stack(losses).mean()


def token_mask(batch: Any) -> Tensor | None:
    """(batch, tokens) bool, False at padding; None where the batch names no padding."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
