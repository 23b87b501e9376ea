"""Steps during the backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .finite import all_finite
from .sharded import is_sharded
from .stepping import LowRankOptimizer


def step_in_backward(optimizer: LowRankOptimizer) -> Callable[[], None]:
    """Let each parameter step as soon as backward has its gradient, which is then freed.

    No more than a few gradients are held at a time, and the weights are those of usual stepping.
    Call `optimizer.step()` after each backward all the same: schedulers count it, and a second
    gradient before it (accumulation) raises RuntimeError. A gradient that is not finite leaves out
    its own parameter only. What needs all gradients at once (clipping by their common norm,
    GradScaler) cannot be had, and sharded parameters (FSDP2) raise ValueError. State, and so
    resuming, are as usual.

    Returns a function that goes back to usual stepping. Parameters of later groups are not seen.
    """
    moved: set[Tensor] = set()

    @torch.no_grad()
    def step_one(p: Tensor) -> None:
        if p in moved:
            raise RuntimeError(
                "a parameter has a second gradient before optimizer.step(): gradients cannot be "
                "accumulated with step_in_backward; take larger batches, or step as usual"
            )
        moved.add(p)
        if all_finite([p.grad]):
            optimizer.advance([p])
        else:
            warnings.warn("a gradient is not finite: its parameter was skipped", stacklevel=2)
        p.grad = None

    def begin_anew(*_: Any) -> None:
        moved.clear()

    if any(is_sharded(p) for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("step_in_backward does not take sharded parameters: step as usual")
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    handles: list[Any] = [p.register_post_accumulate_grad_hook(step_one) for p in params]
    handles.append(optimizer.register_step_post_hook(begin_anew))

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
