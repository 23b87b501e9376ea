"""Whether a step may be taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .sharded import is_sharded, local
from .tracing import untraced


@untraced
def all_finite(grads: Sequence[Any]) -> bool:
    """Whether all are, on every process that holds parts; raises for sparse ones.

    One look at each device, not one per gradient.
    """
    peaks: dict[torch.device, list[Tensor]] = {}
    for g in (local(g) for g in grads if g is not None):
        if g.layout != torch.strided:
            raise RuntimeError(
                "a gradient is sparse: give its parameter to torch.optim.SparseAdam, "
                "or make the embedding with sparse=False"
            )
        if g.numel():
            peaks.setdefault(g.device, []).extend(g.aminmax())  # NaN goes through both
    found = all(
        bool(torch.isfinite(torch.stack([p.double() for p in some])).all())
        for some in peaks.values()
    )
    for mesh in {g.device_mesh for g in grads if g is not None and is_sharded(g)}:
        agreed = torch.tensor(int(found), device=mesh.device_type)
        dist.all_reduce(agreed, dist.ReduceOp.MIN, mesh.get_group())
        found = bool(agreed)
    return found
