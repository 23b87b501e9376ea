"""What options and gradients may be."""

from __future__ import annotations

from typing import Any

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
