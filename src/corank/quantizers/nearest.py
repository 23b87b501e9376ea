"""Quantisers that round every number by itself, in groups of neighbours that share a scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..models import Site
from ..operators import (
    Quantised,
    normal_float,
    quantise_codebook,
    quantise_scales,
    quantise_shifted,
    quantise_signs,
    quantise_ternary,
    quantise_uniform,
)
from ..operators.packing import packed_width
from .quantizer import Quantizer
from .tuning import CLIP, SHIFT

#: A scale of double quantisation: 8 bits, and a scale and a zero point for each 256 of them.
SCALE_BITS, SCALE_GROUP = 8, 256


def round_to_nearest(bits: int = 4, group: int = 64, symmetric: bool = False) -> Quantizer:
    """2**bits evenly spaced values for each `group` numbers; see `operators.quantise_uniform`."""
    if bits not in range(2, 9):
        raise ValueError(f"bits must be 2, 3, ... or 8, got {bits}")
    quantise = partial(quantise_uniform, bits=bits, group=group, symmetric=symmetric)
    return _in_groups(quantise, bits, group, zeros=not symmetric)


def as_tuned(bits: int = 4, group: int = 64) -> Quantizer:
    """Rounding with the shift and the factors that `tuning.tune_rounding` left at a site.

    A site that stands in no block has no factors, and a shift of zero.
    """

    def apply(weight: Tensor, site: Site) -> Quantised:
        return quantise_shifted(weight, bits, group, site.stats[SHIFT], site.stats.get(CLIP))

    return Quantizer(apply, round_to_nearest(bits, group).counts, frozenset({SHIFT, CLIP}))


def to_normal_float(bits: int = 4, group: int = 64, double: bool = False) -> Quantizer:
    """Quantiles of the normal distribution, NF4 for 4 bits, times the group's largest magnitude.

    double: the scales are quantised as well, to 8 bits (QLoRA, arXiv 2305.14314, section 3).
    """
    book = normal_float(bits)
    plain = _in_groups(partial(quantise_codebook, codebook=book, group=group), bits, group,
                       levels=len(book))  # fmt: skip
    if not double:
        return plain

    def counts(shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        scales = shape[0] * -(-shape[1] // group)
        numel, size = plain.counts(shape, dtype)
        second = -(-scales // SCALE_GROUP)
        return numel + 2 * second, size - scales * (dtype.itemsize - 1) + second * (
            dtype.itemsize + 1
        )

    def apply(weight: Tensor, site: object) -> Quantised:
        return quantise_scales(quantise_codebook(weight, book, group), SCALE_BITS, SCALE_GROUP)

    return Quantizer(apply, counts)


def to_signs(group: int = 64) -> Quantizer:
    """One bit: the sign times the group's mean magnitude, the least-squares choice."""
    return _in_groups(partial(quantise_signs, group=group), 1, group, levels=2)


def to_ternary(group: int = 64) -> Quantizer:
    """-1, 0 or 1 times a scale, in two bits; see `operators.quantise_ternary`."""
    return _in_groups(partial(quantise_ternary, group=group), 2, group, levels=3)


def _in_groups(
    quantise: Callable[[Tensor], Quantised],
    bits: int,
    group: int,
    zeros: bool = False,
    levels: int = 0,
) -> Quantizer:
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")

    def counts(shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        out, into = shape
        groups = out * -(-into // group)
        numel = out * into + groups * (2 if zeros else 1) + levels
        size = out * packed_width(into, bits) + groups * (dtype.itemsize + zeros)
        return numel, size + levels * dtype.itemsize

    return Quantizer(
        lambda weight, site: quantise(weight), counts,
        rows=lambda values, columns, site: quantise(values),
    )  # fmt: skip
