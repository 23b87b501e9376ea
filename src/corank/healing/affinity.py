"""Distilling how the places of a feature map relate to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def spatial_affinity_loss(features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Sum over blocks of the mean |S - S'| of spatial affinities, the teacher's `wanted` frozen.

    features, wanted: (batch, channels, *spatial) each; the numbers of channels may differ. S is the
    cosine between the channel vectors of every two places, so it takes (places)^2 numbers a
    sample: train on patches. Used by DSCLoRA (arXiv 2504.11271), from FAKD.
    """
    losses = [
        F.l1_loss(_affinity(mine), _affinity(theirs.detach()))
        for mine, theirs in zip(features, wanted, strict=True)
    ]
    return torch.stack(losses).sum()


def _affinity(feature: Tensor) -> Tensor:  # (batch, places, places)
    columns = feature.flatten(2).float()
    unit = columns / (torch.linalg.vector_norm(columns, dim=1, keepdim=True) + 1e-8)
    return unit.mT @ unit
