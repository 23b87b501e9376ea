"""Steps whose gradient is not finite are left out, as a GradScaler leaves them out."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

LONGEST = 50  #: skipped steps in a row after which a run is given up


@final
class Skipping:
    """Hooks onto an optimiser; counts the steps that it skipped in `count`.

    Weights and state stay as they were: an optimiser leaves parameters without gradient alone.
    Raises FloatingPointError after `LONGEST` in a row: nothing is learnt any more then.
    """

    def __init__(self) -> None:
        self.count = self._in_a_row = 0

    def attach(self, optimizer: Optimizer) -> None:
        """Look at the gradients before every step of `optimizer`."""
        optimizer.register_step_pre_hook(self._before)

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if _are_finite(gradients):
            self._in_a_row = 0
            return
        self.count += 1
        self._in_a_row += 1
        if self._in_a_row >= LONGEST:
            raise FloatingPointError(
                f"the gradient was NaN or infinite in {LONGEST} steps in a row: go back to an "
                "earlier checkpoint with a lower learning rate, or train in bf16 or float32"
            )
        warnings.warn("a gradient is not finite: this step was skipped", stacklevel=2)
        for parameter in parameters:
            parameter.grad = None


def _are_finite(gradients: list[Tensor]) -> bool:
    """Over all shards of all processes: none may step where another skips."""
    if not gradients:
        return True
    total = torch.nn.utils.get_total_norm(gradients)
    whole = total.full_tensor() if hasattr(total, "full_tensor") else total
    return bool(torch.isfinite(whole))
