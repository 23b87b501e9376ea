"""What options and gradients may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .tracing import untraced

#: Names of what moments may be stored in.
STATE_DTYPES = ("float32", "bfloat16", "int8")


def require_sound(group: dict[str, Any]) -> None:
    low, high = group["betas"]
    for name, value, sound in (
        ("lr", group["lr"], group["lr"] >= 0),
        ("betas", group["betas"], 0 <= low < 1 and 0 <= high < 1),
        ("eps", group["eps"], group["eps"] >= 0),
        ("weight_decay", group["weight_decay"], group["weight_decay"] >= 0),
        ("state_dtype", group["state_dtype"], group["state_dtype"] in STATE_DTYPES),
    ):
        if not sound:
            raise ValueError(f"{name} is out of range: {value!r}")
    for p in group["params"]:
        if not p.is_floating_point():
            raise ValueError(f"parameters must be real floating-point tensors, got {p.dtype}")


@untraced
def all_finite(grads: Iterable[Tensor | None]) -> bool:
    """Whether all are; raises for sparse ones. One look at each device, not one per gradient."""
    peaks: dict[torch.device, list[Tensor]] = {}
    for g in grads:
        if g is None or not g.numel():
            continue
        if g.layout != torch.strided:
            raise RuntimeError(
                "a gradient is sparse: give its parameter to torch.optim.SparseAdam, "
                "or make the embedding with sparse=False"
            )
        peaks.setdefault(g.device, []).extend(g.aminmax())  # NaN goes through both
    return all(
        bool(torch.isfinite(torch.stack([p.double() for p in some])).all())
        for some in peaks.values()
    )
