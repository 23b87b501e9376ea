"""Moments in eight bits: 256 numbers share a scale, and codes are finer towards zero."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from .tracing import untraced
from .transform import State

_BLOCK = 256
_LEAST = 4096  #: numbers of a tensor that is worth it, as in torchao and bitsandbytes
_SCALES = "_scales"


@untraced
@lru_cache
def levels(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers of the dynamic data type (Dettmers, 2015), ascending, up to 1.

    Seven decades; each has twice as many numbers as the one below, evenly spread.
    """
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (0 if signed else 1)) + 1)
        middles = (10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
        found += middles + ([-m for m in middles] if signed else [])
    return torch.tensor(sorted(found), device=device)


def _is_packed(name: str, value: object) -> bool:
    moment = isinstance(value, Tensor) and value.is_floating_point() and value.numel() >= _LEAST
    return moment and name != "basis"


def pack_afresh(state: State) -> State:
    """State before the first step: large tensors of zeros, but for a basis, as codes and scales."""
    packed: State = {}
    for name, value in state.items():
        if _is_packed(name, value):
            packed[name] = torch.zeros_like(value, dtype=torch.uint8)
            packed[name + _SCALES] = value.new_zeros(-(-value.numel() // _BLOCK))
        else:
            packed[name] = value
    return packed


def unpack(state: State) -> State:
    """State with numbers in place of codes; of a stack, too."""
    packed = [name for name in state if name + _SCALES in state]
    whole = {n: v for n, v in state.items() if n.removesuffix(_SCALES) not in packed}
    for name in packed:
        codes, scales = state[name], state[name + _SCALES]
        numbers = levels(not name.endswith("_sq"), codes.device)[codes.int()]
        spread = scales.repeat_interleave(_BLOCK, -1)[..., : codes.numel() // _rows(scales)]
        numbers = numbers * spread.reshape(codes.shape)
        whole[name] = numbers.square() if name.endswith("_sq") else numbers
    return {name: whole[name] for name in state if name in whole}


def pack(state: State, like: State) -> State:
    """`state` with those of its tensors as codes that `like` has so.

    Of second moments, the roots are stored; no root but zero becomes zero.
    """
    packed: State = {}
    for name, value in state.items():
        if name + _SCALES not in like:
            packed[name] = value
            continue
        squares, rows = name.endswith("_sq"), _rows(like[name + _SCALES])
        flat = (value.sqrt() if squares else value).float().reshape(rows, -1)
        blocks = pad(flat, (0, -flat.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
        scales = blocks.abs().amax(-1)
        shares = (blocks / scales.clamp(min=1e-30)[..., None]).flatten(1)[:, : flat.shape[1]]
        known = levels(not squares, value.device)
        codes = torch.bucketize(shares.contiguous(), (known[1:] + known[:-1]) / 2, out_int32=True)
        if squares:
            codes = torch.where(shares > 0, codes.clamp(min=1), codes)
        packed[name] = codes.to(torch.uint8).view(value.shape)
        packed[name + _SCALES] = scales.view_as(like[name + _SCALES])
    return packed


def _rows(scales: Tensor) -> int:
    return scales.shape[0] if scales.ndim > 1 else 1
