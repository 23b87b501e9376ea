"""Channels of equal heads, of which every head keeps as many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Run:
    """Channels in `heads` equal parts, of which those in one of a head's `units` stay together.

    units: (count, s), numbers within a head.
    """

    heads: int
    units: Tensor

    @property
    def width(self) -> int:
        """How many channels there are."""
        return self.heads * self.units.numel()

    def grouped(self, values: Tensor) -> Tensor:
        """values (width, ...) by head, unit and channel of it: (heads, count, s, ...)."""
        return values.unflatten(0, (self.heads, -1))[:, self.units.to(values.device)]

    def spread(self, units: Tensor) -> Tensor:
        """The inverse of `grouped`."""
        every = self.grouped(torch.arange(self.width, device=units.device))
        flat = units.new_empty(self.width, *units.shape[3:])
        flat[every.flatten()] = units.flatten(0, 2)
        return flat

    def ranked(self, scores: Tensor) -> Tensor:
        """The channels (count, heads * s), the best units of all heads first; scores (width,)."""
        best = self.grouped(scores).sum(2).argsort(dim=1, descending=True, stable=True)
        every = self.grouped(torch.arange(self.width, device=scores.device))
        picked = every.gather(1, best[..., None].expand_as(every))  # (heads, count, s)
        return picked.transpose(0, 1).flatten(1)
