"""Codes of 1 to 8 bits in bytes, without a gap."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def packed_width(count: int, bits: int) -> int:
    """Bytes that hold `count` codes of `bits` bits: the last byte is padded with zero bits."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:  # (..., n) -> (..., ceil(n bits / 8)) uint8
    """Integers below 2**bits as a little-endian stream of bits: code i starts at bit i * bits.

    Each row along the last axis is a stream of its own. Raises ValueError for bits outside
    1..8 and for a code that does not fit.
    """
    _require_bits(bits)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        span = f"{int(codes.min())}..{int(codes.max())}"
        raise ValueError(f"codes {span} do not fit in {bits} bits: they must be 0..{2**bits - 1}")
    places = torch.arange(bits, device=codes.device)
    stream = (codes.long().unsqueeze(-1) >> places & 1).flatten(-2)  # (..., n bits)
    stream = F.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (stream << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:  # (..., bytes) -> (..., count)
    """The first `count` codes of a packed stream, as uint8: the inverse of `pack`.

    Codes of 8 bits are `packed` itself.
    """
    _require_bits(bits)
    if bits == 8:
        return packed[..., :count]
    mask = 2**bits - 1
    if 8 % bits == 0:
        starts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
        codes = (packed.unsqueeze(-1) >> starts).bitwise_and_(mask)
        return codes.flatten(-2)[..., :count]
    # Eight codes fill `bits` bytes, and each lies in one byte or across two.
    words = F.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    codes = words.new_empty(*words.shape[:-1], 8)
    for i, start in enumerate(range(0, 8 * bits, bits)):
        byte, bit = divmod(start, 8)
        code = words[..., byte] >> bit
        if bit + bits > 8:
            code |= words[..., byte + 1] << 8 - bit
        codes[..., i] = code.bitwise_and_(mask)
    return codes.flatten(-2)[..., :count]


def _require_bits(bits: int) -> None:
    if bits not in range(1, 9):
        raise ValueError(f"bits must be 1, 2, ... or 8, got {bits}")
