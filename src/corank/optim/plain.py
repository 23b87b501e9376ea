"""Adam as it is, for what is not projected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .advancing import advance
from .inner import adam
from .tracing import untraced
from .transform import State


@untraced
def advance_plainly(
    params: Iterable[Tensor], group: dict[str, Any], states: Mapping[Tensor, State]
) -> None:
    """Adam's step with decoupled weight decay; torch's fused one where it takes the tensors."""
    teams: dict[Any, list[Tensor]] = {}
    others: list[Tensor] = []
    for p in params:
        if _is_fusible(p, states[p]):
            states[p]["step"] += 1
            teams.setdefault((states[p]["step"], p.dtype, p.device), []).append(p)
        else:
            others.append(p)
    for (step, _, device), team in teams.items():
        torch._fused_adamw_(
            team,
            [p.grad for p in team],  # type: ignore[misc]
            [states[p]["exp_avg"] for p in team],
            [states[p]["exp_avg_sq"] for p in team],
            [],
            [torch.tensor(float(step), device=device)] * len(team),
            lr=float(group["lr"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
    advance(others, group | {"stack": True, "heads": 1}, adam(), states, {})


def _is_fusible(p: Tensor, state: State) -> bool:
    used = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
    alike = all(t.dtype == p.dtype and t.is_contiguous() for t in used if t is not None)
    return alike and p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64)
