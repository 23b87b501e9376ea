"""Rounding a matrix to the nearest codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .operator import Operator, require_matrix
from .packing import pack
from .quantised import Quantised


def quantise_uniform(
    weight: Tensor, bits: int = 4, group: int = 64, symmetric: bool = True
) -> Quantised:
    """`weight` (out, in) to the nearest of 2**bits evenly spaced values per group.

    Symmetric: 2**bits - 1 values around zero, up to the group's largest magnitude. Otherwise the
    values span the group's range, widened to hold zero, with a zero point of one byte. `bits` is
    2..8, `group` counts neighbours in a row. The scales are in the dtype of `weight`.
    Raises ValueError for other bits, NaN or infinite weights, or weights on the meta device.
    """
    if not symmetric:
        return quantise_shifted(weight, bits, group)
    _require_bits(bits)
    grouped = _grouped(weight, group)  # (out, groups, group) fp32 or fp64
    top = 2 ** (bits - 1) - 1
    scale = _positive(grouped.abs().amax(-1) / top, weight.dtype)
    codes = (grouped / _wide(scale)).round().clamp(-top, top) + (top + 1)
    return _quantised(weight, codes, scale, bits, group, None, None)


def quantise_shifted(
    weight: Tensor,
    bits: int = 4,
    group: int = 64,
    shift: Tensor | None = None,
    clip: Tensor | None = None,
) -> Quantised:
    """As `quantise_uniform`, not symmetric, of numbers moved before they are rounded.

    `shift` (out, in) is added in units of the scale, and the values span the group's range, whose
    ends are first multiplied by `clip` (2, out, groups), the lower one by the first.
    """
    _require_bits(bits)
    grouped, top = _grouped(weight, group), 2**bits - 1
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if clip is not None:
        low, high = low * clip[0].to(low), high * clip[1].to(high)
    scale = _positive((high - low) / top, weight.dtype)
    zero = (-low / scale.to(low.dtype)).round().clamp(0, top)
    wanted = grouped / _wide(scale)
    if shift is not None:
        wanted = wanted + _grouped(shift, group).to(wanted)
    codes = (wanted.round() + zero[..., None]).clamp(0, top)
    return _quantised(weight, codes, scale, bits, group, zero.to(torch.uint8), None)


def quantise_codebook(weight: Tensor, codebook: Tensor, group: int = 64) -> Quantised:
    """`weight` (out, in) to the nearest of `codebook`'s values times the group's magnitude.

    `codebook` is ascending, of 3 to 256 values in [-1, 1]; codes take ceil(log2(its length)) bits.
    Raises ValueError for another codebook, NaN or infinite weights, or ones on the meta device.
    """
    book = codebook.detach()
    if book.ndim != 1 or not 3 <= book.shape[0] <= 256 or bool((book.diff() <= 0).any()):
        raise ValueError("codebook must be a vector of 3 to 256 strictly ascending values")
    grouped = _grouped(weight, group)
    return _to_levels(weight, grouped, book, grouped.abs().amax(-1), group)


def quantise_signs(weight: Tensor, group: int = 64) -> Quantised:
    """`weight` (out, in) to its signs times the mean magnitude of the group, in one bit.

    Of all signs and scales these are the nearest (XNOR-Net, arXiv 1603.05279, section 3.1). Zero
    counts as negative. Raises ValueError for NaN or infinite weights, or ones on the meta device.
    """
    grouped = _grouped(weight, group)
    return _to_levels(weight, grouped, _levels(-1, 1), _mean(grouped.abs(), weight, group), group)


def quantise_ternary(weight: Tensor, group: int = 64, rounds: int = 10) -> Quantised:
    """`weight` (out, in) to -1, 0 or 1 times a scale for each group, in two bits.

    From the threshold 0.7 E|w| (Ternary Weight Networks, arXiv 1605.04711, section 2.2), scale and
    codes are fitted to each other in turn, at most `rounds` times, so the error does not grow.
    Raises ValueError for NaN or infinite weights, or ones on the meta device.
    """
    grouped = _grouped(weight, group)
    sizes = grouped.abs()
    chosen = sizes > 0.7 * _mean(sizes, weight, group)[..., None]
    for _ in range(rounds):
        scale = (sizes * chosen).sum(-1) / chosen.sum(-1).clamp_min(1)
        before, chosen = chosen, sizes > scale[..., None] / 2
        if torch.equal(before, chosen):
            break
    return _to_levels(weight, grouped, _levels(-1, 0, 1), scale, group)


def quantise_scales(op: Quantised, bits: int = 8, group: int = 256) -> Quantised:
    """`op` with its scales quantised too, to `bits` bits in groups of `group`, row after row."""
    scale = quantise_uniform(op.scales().detach().reshape(1, -1), bits, group, symmetric=False)
    return Quantised(op.codes, scale, op.shape, op.bits, op.group, op.zero, op.levels)


def stack_rows(parts: Sequence[Operator]) -> Quantised:
    """Matrices in codes of one width, bits and groups, below each other, in the same codes.

    Raises ValueError for others, and for scales in codes or levels, which each would have for
    itself.
    """
    codes = [op for op in parts if isinstance(op, Quantised)]
    own = any(isinstance(op.scale, Operator) or op.levels is not None for op in codes)
    alike = {(op.shape[1], op.bits, op.group, op.zero is None) for op in codes}
    if len(codes) < len(parts) or len(alike) != 1 or own:
        raise ValueError("only codes of one width, with plain scales and no levels, can be stacked")
    first, zeros = codes[0], [op.zero for op in codes if op.zero is not None]
    return Quantised(
        torch.cat([op.codes for op in codes]), torch.cat([op.scales() for op in codes]),
        (sum(op.shape[0] for op in codes), first.shape[1]), first.bits, first.group,
        torch.cat(zeros) if zeros else None,
    )  # fmt: skip


def normal_float(bits: int = 4) -> Tensor:  # (2**bits,) float32
    """Quantiles of the normal distribution, scaled to [-1, 1] and with an exact zero.

    For 4 bits this is NF4 (QLoRA, arXiv 2305.14314, appendix E). `bits` is 2..8.
    """
    _require_bits(bits)
    half = 2 ** (bits - 1)
    # Both halves start at the mean of 1 - 1/(4 half) and 1 - 1/(4 half - 2), and end at zero.
    start = 1 - 0.5 * (1 / (4 * half) + 1 / (4 * half - 2))
    upper = torch.special.ndtri(torch.linspace(start, 0.5, half + 1, dtype=torch.float64))
    lower = -torch.special.ndtri(torch.linspace(start, 0.5, half, dtype=torch.float64))
    values = torch.cat([lower[:-1], upper.flip(0)])
    values[half - 1] = 0.0
    return (values / values.abs().max()).float()


def _to_levels(
    weight: Tensor, grouped: Tensor, book: Tensor, scale: Tensor, group: int
) -> Quantised:
    scale = _positive(scale, weight.dtype)
    levels = book.to(weight.device, weight.dtype, copy=True)  # not one storage for all weights
    wide = levels.to(grouped.dtype)
    middles = (wide[1:] + wide[:-1]) / 2
    codes = torch.bucketize((grouped / _wide(scale)).contiguous(), middles)
    bits = (book.shape[0] - 1).bit_length()
    return _quantised(weight, codes, scale, bits, group, None, levels)


def _levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _mean(grouped: Tensor, weight: Tensor, group: int) -> Tensor:
    """Means over the groups, the last of which may be short: (out, groups)."""
    filled = weight.shape[1] - group * torch.arange(grouped.shape[1], device=weight.device)
    return grouped.sum(-1) / filled.clamp(max=group)


def _grouped(weight: Tensor, group: int) -> Tensor:  # (out, in) -> (out, groups, group)
    require_matrix(weight, "weight")
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
    if weight.is_meta:
        raise ValueError("a weight on the meta device has no values to quantise: load it first")
    if not bool(weight.isfinite().all()):
        raise ValueError("weight holds NaN or infinite values: mend them before quantising")
    group = _within(group, weight)
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return F.pad(wide, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))


def _within(group: int, weight: Tensor) -> int:
    """A group is at most a row: what is longer would be filled up with zeros."""
    return min(group, max(1, weight.shape[1]))


def _positive(scale: Tensor, dtype: torch.dtype) -> Tensor:
    # As it is stored, so that rounding meets the very scale that decodes; a zero group gets 1.
    scale = scale.to(dtype)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _wide(scale: Tensor) -> Tensor:  # (out, groups) -> (out, groups, 1)
    return scale.to(torch.promote_types(scale.dtype, torch.float32))[..., None]


def _require_bits(bits: int) -> None:
    if bits not in range(2, 9):
        raise ValueError(f"bits must be 2, 3, ... or 8, got {bits}")


def _quantised(
    weight: Tensor,
    codes: Tensor,
    scale: Tensor,
    bits: int,
    group: int,
    zero: Tensor | None,
    levels: Tensor | None,
) -> Quantised:
    shape = (weight.shape[0], weight.shape[1])
    packed = pack(codes.flatten(1)[:, : shape[1]], bits)
    return Quantised(packed, scale, shape, bits, _within(group, weight), zero, levels)
