"""Windows of rank-one terms that sharpen, shrink and vanish while they train."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..operators import Windowed
from .control import Training
from .replacing import replace


def _all(training: Training) -> Iterator[tuple[str, Windowed]]:
    for site, op in list(training.operators.items()):
        assert isinstance(op, Windowed)
        yield site, op


def sharpen(training: Training, first: float, last: float) -> None:
    """Let sigma grow in proportion to the steps that are done of those planned."""
    done = min(training.step / training.planned(), 1.0)
    for _, op in _all(training):
        op.sigma = first + (last - first) * done


def shrink(training: Training, threshold: float, target: float) -> None:
    """A proximal step on the widths, threshold times the rate long, while they are too wide.

    They are, while their mean over all terms, those of no area counted as zero, is above `target`.
    At the planned end the terms of no area are dropped.
    """
    areas = [(op.widths * (op.widths.prod(0) > 0)).mean() for _, op in _all(training)]
    length = threshold if float(torch.stack(areas).mean()) > target else 0.0
    for site, op in _all(training):
        op.widths.copy_(F.softshrink(op.widths, length * _rate(training, op.widths)).clamp(0, 1))
        op.starts.copy_(op.starts - op.starts.floor())
        if training.total is not None and training.step >= training.total:
            places = torch.tensor(op.shape, device=op.widths.device)[:, None]
            kept = ((op.widths * places).round() > 0).all(0)
            kept[0] |= ~kept.any()
            b, a, widths, starts = (
                nn.Parameter(part)
                for part in (op.b[:, kept], op.a[kept], op.widths[:, kept], op.starts[:, kept])
            )
            replace(training, site, Windowed(b, a, widths, starts, op.sigma))


def _rate(training: Training, leaf: nn.Parameter) -> float:
    """The learning rate of a leaf."""
    groups = training.attached().param_groups
    return next(float(g["lr"]) for g in groups if any(p is leaf for p in g["params"]))
