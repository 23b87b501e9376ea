"""Telling adapters that know several tasks which one they work on."""

from __future__ import annotations

from torch import nn

from ..adapters.record import adapted
from ..operators import TensorExperts


def set_task(model: nn.Module, task: int, name: str = "default") -> None:
    """Let an adapter made by tensorpoly with several tasks work on this one from now on.

    Raises ValueError for a task that it does not know, and where no adapter of that name has any.
    """
    found = [
        part
        for weight in adapted(model).values()
        if name in weight.names
        for part in weight.adapter(name).modules()
        if isinstance(part, TensorExperts)
    ]
    if not found:
        raise ValueError(f"adapter {name!r} has no tasks: it was not made by tensorpoly")
    count = min(op.logits.shape[0] for op in found)
    if not 0 <= task < count:
        raise ValueError(f"task {task} is outside 0 to {count - 1}")
    for op in found:
        op.task = task
