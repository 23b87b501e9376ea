"""A basis stored in four bits."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .conjugate import Basis
from .frames import Columns, Frame
from .transform import Now, State

_GROUP = 256  #: numbers that share a scale


def int4(basis: Basis) -> Basis:
    """`basis` with its matrix in symmetric INT4, two numbers a byte, one scale for 256 of them."""

    def start(like: Tensor) -> State:
        state = basis.start(like)
        numel = state.pop("basis").numel()
        groups = -(-numel // _GROUP)
        codes = torch.zeros(groups * _GROUP // 2, dtype=torch.uint8, device=like.device)
        scales = torch.zeros(groups, dtype=torch.float32, device=like.device)
        return state | {"basis_codes": codes, "basis_scales": scales}

    def matrix(x: Tensor, state: State) -> Tensor:
        codes = state["basis_codes"]
        levels = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).to(x.dtype) - 8
        groups = levels.unflatten(-1, (-1, _GROUP))
        numbers = (groups * state["basis_scales"].to(x.dtype)[..., None]).flatten(-2)
        shape = (*x.shape[codes.ndim - 1 : -1], basis.rank(x.shape[-2]))
        return numbers[..., : math.prod(shape)].unflatten(-1, shape)

    def frame(x: Tensor, state: State, now: Now) -> Frame:
        return Columns(matrix(x, state), x)

    def refresh(x: Tensor, state: State, now: Now) -> State:
        found = basis.refresh(x, state | {"basis": matrix(x, state)}, now)
        numbers = found.pop("basis").flatten().float()
        padded = torch.nn.functional.pad(numbers, (0, -len(numbers) % _GROUP)).view(-1, _GROUP)
        scales = padded.abs().amax(1) / 7
        levels = (padded / scales.clamp(min=1e-30)[:, None]).round().to(torch.int8) + 8
        low, high = levels.to(torch.uint8).view(-1, 2).unbind(1)
        return found | {"basis_codes": low | (high << 4), "basis_scales": scales}

    return replace(basis, start=start, refresh=refresh, frame=frame)
