"""Adam as it is, for what is not projected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .advancing import advance
from .inner import adam
from .sharded import is_sharded, local
from .tracing import untraced
from .transform import State


@untraced
def advance_plainly(
    params: Iterable[Tensor], group: dict[str, Any], states: Mapping[Tensor, State]
) -> None:
    """Adam's step with decoupled weight decay; torch's fused one where it takes the tensors."""
    teams: dict[Any, list[tuple[Tensor, ...]]] = {}
    others: dict[Tensor, State] = {}
    for p in params:
        state = states[p]
        used = [local(t) for t in (p, p.grad, state["exp_avg"], state["exp_avg_sq"])]
        if _is_fusible(used):
            state["step"] += 1
            if used[0].numel():
                teams.setdefault((state["step"], p.dtype, p.device), []).append(tuple(used))
        elif is_sharded(p):
            _advance_part(p, group, state)
        else:
            others[p] = state
    for (step, _, device), team in teams.items():
        weights, grads, averages, squares = (list(some) for some in zip(*team, strict=True))
        torch._fused_adamw_(
            weights,
            grads,
            averages,
            squares,
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
    _advance_slowly(others, group)


def _advance_slowly(states: Mapping[Tensor, State], group: dict[str, Any]) -> None:
    advance(states, group | {"stack": True, "heads": 1}, adam(), states, {})


def _advance_part(p: Tensor, group: dict[str, Any], state: State) -> None:
    """This process's part of p, whose moments it holds as it holds p."""
    part = nn.Parameter(local(p))
    part.grad = local(p.grad)
    parts = {name: local(value) for name, value in state.items()}
    _advance_slowly({part: parts}, group)
    state["step"] = parts["step"]


def _is_fusible(used: list[Tensor]) -> bool:
    p = used[0]
    alike = all(t.dtype == p.dtype and t.is_contiguous() for t in used)
    return alike and p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64)
