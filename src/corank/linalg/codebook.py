"""Points by the nearest of few centres: k-means with a weight for every coordinate."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**16  # points whose distances to all centres are held
_SEEN = 64  # points for each centre, of which the first centres are drawn


def learned_codebook(
    points: Tensor, weights: Tensor, count: int, rounds: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` centres (count, d) for points (n, d), and the index (n,) of each point's own.

    They lower the sum of weights * (points - centre)^2: centres are drawn as k-means++ does, then
    indices and centres are the best for each other in turn, at most `rounds` times. weights (n, d)
    are at least 0; a coordinate of a centre that nothing weighs stays as it was. `generator` is
    the CPU's.
    """
    centres = _drawn(points, weights, count, generator)
    labels = nearest_centres(points, weights, centres)
    for _ in range(rounds):
        total = torch.zeros_like(centres).index_add_(0, labels, weights)
        summed = torch.zeros_like(centres).index_add_(0, labels, weights * points)
        means = summed / total.clamp_min(torch.finfo(total.dtype).tiny)
        centres = torch.where(total > 0, means, centres)
        before, labels = labels, nearest_centres(points, weights, centres)
        if torch.equal(before, labels):
            break
    return centres, labels


def nearest_centres(points: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
    """The index (n,) of the centre with the least weighted distance to each point (n, d)."""
    squares, twice = centres.square().mT, 2 * centres.mT
    found = [
        (w @ squares - (w * p) @ twice).argmin(1)
        for p, w in zip(points.split(_AT_ONCE), weights.split(_AT_ONCE), strict=True)
    ]
    return torch.cat(found)


def _drawn(points: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres among the points, each drawn by its weighted distance to those drawn before it."""
    seen = torch.randperm(len(points), generator=generator)[: _SEEN * count].to(points.device)
    points, weights = points[seen], weights[seen]
    chances, centres = weights.sum(1), []
    for i in range(count):
        if not bool(chances.sum() > 0):
            chances = torch.ones_like(chances)  # fewer distinct points than centres
        sums = chances.double().cumsum(0).cpu()
        at = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
        place = min(int(torch.searchsorted(sums, at, right=True)), len(points) - 1)
        centres.append(points[place])
        lost = (weights * (points - points[place]).square()).sum(1)
        chances = lost if i == 0 else torch.minimum(chances, lost)
    return torch.stack(centres)
