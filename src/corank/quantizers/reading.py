"""Weights in codes whose inputs are rounded too, while the model runs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..models import Site
from ..operators import Operator, RoundedInputs
from .quantizer import Quantizer


def reading_rounded(quantizer: Quantizer, bits: int, group: int) -> Quantizer:
    """The same codes, of inputs rounded to `bits` in groups of `group`; see `RoundedInputs`."""

    def apply(weight: Tensor, site: Site) -> Operator:
        return RoundedInputs(quantizer(weight, site), bits, group)

    return replace(quantizer, apply=apply, rows=None)
