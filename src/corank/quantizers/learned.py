"""Quantisers whose rounding is trained afterwards, and settles then."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..linalg.checks import check_finite
from ..models import Site
from ..operators import LearnedRounding
from .nearest import round_to_nearest
from .quantizer import Quantizer

_POWER = 2.4  # of the errors by which a range is chosen
_RANGES = 100


def learned_scales(bits: int = 4, rank: int | None = None) -> Quantizer:
    """Codes with one scale a row, each number divided by one of its own before it is rounded.

    The logarithms of these divisors are of rank `rank`, with a row's and a column's own beside;
    they start equal and train (see `operators.LearnedRounding`). rank: None: a quarter of the
    weight's smaller side. The range of a row starts as the one, of 100 up to its whole range, with
    the least sum of errors to the power 2.4.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank} is below 1")

    def apply(weight: Tensor, site: Site) -> LearnedRounding:
        check_finite(weight, f"the weight of {site.where}")
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        step, zero = _best_range(wide, bits)
        (out, into), most = weight.shape, min(weight.shape)
        inner = min(rank or max(1, most // 4), most)
        drawn = torch.rand(inner, into, generator=site.draws(), dtype=torch.float64)
        right = ((2 * drawn - 1) / math.sqrt(into)).to(wide)
        return LearnedRounding(
            weight, step.log(), wide.new_zeros(out, inner), right, wide.new_zeros(out),
            wide.new_zeros(into), zero.to(torch.uint8), bits,
        )  # fmt: skip

    def counts(shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        return round_to_nearest(bits, shape[1]).counts(shape, dtype)

    return Quantizer(apply, counts)


def _best_range(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step and zero point (out,) of each row."""
    top = 2**bits - 1
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    whole = (high - low).clamp_min(1e-8) / top
    zero = (-low / whole).round().clamp(0, top)
    least, best = torch.full_like(whole, torch.inf), whole
    for i in range(1, _RANGES + 1):
        step = whole * (i / _RANGES)
        codes = ((weight / step[:, None]).round() + zero[:, None]).clamp(0, top)
        lost = ((codes - zero[:, None]) * step[:, None] - weight).abs().pow(_POWER).sum(1)
        best, least = torch.where(lost < least, step, best), torch.minimum(lost, least)
    return best, zero
