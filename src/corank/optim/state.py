"""What an optimiser remembers of a parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .eight_bits import pack_afresh
from .inner import adam
from .matrices import as_matrix
from .transform import State, Transform

#: State that stays on the CPU, whatever device its parameter is on.
ON_CPU = frozenset({"cosines"})


def is_projected(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether a parameter of the group goes through the method or through plain Adam."""
    return bool(group["project"]) and p.ndim >= 2 and p.numel() > 0


def outline(p: Tensor) -> Tensor:
    """The parameter's shape and type, whole if it is sharded, on the meta device."""
    return torch.empty(p.shape, dtype=p.dtype, device="meta")


def fresh_state(p: Tensor, group: dict[str, Any], transform: Transform) -> State:
    """The state before the first step; over meta tensors it costs nothing to know."""
    like = p.detach()
    if is_projected(p, group):
        like = as_matrix(like, group)
    else:
        transform = adam()
    wide = torch.float64 if p.dtype == torch.float64 else torch.float32
    dtype = torch.bfloat16 if group["state_dtype"] == "bfloat16" else wide
    state = transform.start(torch.empty_like(like, dtype=dtype))
    return {"step": 0} | (pack_afresh(state) if group["state_dtype"] == "int8" else state)
