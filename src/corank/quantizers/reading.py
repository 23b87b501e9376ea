"""Weights in codes whose inputs are rounded too, while the model runs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..models import Site
from ..operators import Operator, RoundedInputs
from .quantizer import Quantizer


def reading_rounded(quantizer: Quantizer, bits: int, group: int) -> Quantizer:
    """The same codes, of inputs rounded to `bits` (2 to 8) in groups; see `RoundedInputs`."""
    if bits not in range(2, 9) or group < 1:
        raise ValueError(f"inputs take 2 to 8 bits in groups of 1 or more, got {bits} and {group}")

    def apply(weight: Tensor, site: Site) -> Operator:
        return RoundedInputs(quantizer(weight, site), bits, group)

    return replace(quantizer, apply=apply, rows=None)
