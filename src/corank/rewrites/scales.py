"""Column scales to try before a rewrite, from what calibration saw of the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .smoothing import Scales

_LEAST = 1e-4  # of the largest scale: a channel that never fires cannot be scaled back from zero


def by_activations(points: int) -> Scales:
    """E|x|^(i / points) for i below `points`: AWQ's grid. Reads "abs_mean"."""

    def scales(weight: Tensor, stats: Mapping[str, Tensor]) -> Iterator[Tensor]:
        size = _floored(stats["abs_mean"])
        for i in range(points):
            yield _centred(size ** (i / points))

    return scales


def between(points: int) -> Scales:
    """max|x|^a / max|W|^(1 - a) for a = i / points: SmoothQuant's grid. Reads "abs_max"."""

    def scales(weight: Tensor, stats: Mapping[str, Tensor]) -> Iterator[Tensor]:
        inputs, columns = _floored(stats["abs_max"]), _floored(weight.abs().amax(0).float())
        for i in range(points + 1):
            alpha = i / points
            yield _centred(inputs**alpha / columns.to(inputs) ** (1 - alpha))

    return scales


def by_rms(weight: Tensor, stats: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The inputs' root mean squares, over their mean. Reads "square_mean"."""
    size = _floored(stats["square_mean"].sqrt())
    yield size / size.mean()


def _floored(size: Tensor) -> Tensor:
    largest = float(size.max())
    return size.clamp_min(largest * _LEAST) if largest else torch.ones_like(size)


def _centred(scale: Tensor) -> Tensor:
    return scale / scale.max().sqrt() / scale.min().sqrt()
