"""Gradients along the line between a model's weights and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Site, install, read, snapshot
from ..operators import Dense
from .collect import collect
from .data import Batches
from .losses import Loss


@torch.no_grad()
def path_gradients(
    model: nn.Module,
    sites: Sequence[Site],
    ends: Mapping[str, Tensor],
    data: Batches,
    points: int,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """The mean of dL/dW over the way from all sites' weights to `ends`: site name -> (m, n).

    ends: site name -> (m, n). Times the way, ends - W, and summed over all weights, it is the
    change of the loss L, up to the rule of `points` midpoints. The model is left as it was.

    Raises: DataError without labels in the batches or `loss`; ValueError for `points` below 1.
    """
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}")
    starts = {site.name: read(model, site).dense().detach() for site in sites}
    totals: dict[str, Any] = dict.fromkeys(starts, 0.0)
    undo = snapshot(model, sites)
    try:
        for i in range(points):
            copies = [replace(site, stats={}) for site in sites]
            for site in copies:
                between = torch.lerp(starts[site.name], ends[site.name], (i + 0.5) / points)
                install(model, site, Dense(between))
            collect(model, copies, {"gradient"}, data, loss=loss)
            for site in copies:
                totals[site.name] = totals[site.name] + site.stats["gradient"] / points
    finally:
        undo()
    return totals
