"""Weights clipped before another quantiser sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from ..metrics import Measure
from ..models import Site
from ..operators import Operator
from .quantizer import Quantizer


def clipped(inner: Quantizer, deviations: Sequence[float], measure: Measure) -> Quantizer:
    """`inner` of W clipped to its mean and so many standard deviations to either side.

    Of `deviations`, each above 0, and of W unclipped, what errs least in `measure`.
    """
    if not all(z > 0 for z in deviations):
        raise ValueError(f"deviations must be numbers above 0, got {list(deviations)}")

    def apply(weight: Tensor, site: Site) -> Operator:
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        centre, spread = wide.mean(), wide.std(correction=0).clamp_min(1e-30)
        metric, tried = measure(site.stats), []
        for z in (*deviations, inf):
            made = inner(wide.clamp(centre - z * spread, centre + z * spread).to(weight), site)
            tried.append((float(metric.loss(weight - made.dense().detach())), made))
        return min(tried, key=lambda pair: pair[0])[1]

    return replace(inner, apply=apply, needs=inner.needs | measure.needs)
