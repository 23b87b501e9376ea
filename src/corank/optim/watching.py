"""What passes through the layers whose weights are optimised."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .transform import State

#: From inputs (tokens, in) and gradients of outputs (tokens, out) to named tensors.
Watch: TypeAlias = Callable[[Tensor, Tensor], State]


@dataclass
class Sight:
    """Sums of what was seen of one layer, over the backward passes since the last step.

    It is `open` until a step says that the next one does not need it.
    """

    open: bool = True
    passes: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, found: State) -> None:
        """Take in one backward pass."""
        self.passes += 1
        for name, value in found.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def taken(self, step: int, every: int) -> State:
        """The averages for a step; afterwards nothing has been seen.

        They are needed at step 1 and then each `every` steps.
        """
        found = {name: total / self.passes for name, total in self.sums.items()}
        self.forget()
        self.open = step % every == 0
        return found

    def forget(self) -> None:
        """Nothing has been seen."""
        self.passes, self.sums = 0, {}


def look_at(
    model: nn.Module, params: Iterable[Tensor], watch: Watch, owner: object
) -> dict[Tensor, Sight]:
    """A sight for each parameter that is the weight of an nn.Linear, as long as `owner` lives."""
    wanted = {id(p) for p in params}
    sights: dict[Tensor, Sight] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) in wanted:
            sight = sights.setdefault(module.weight, Sight())
            handle = module.register_forward_hook(_hook(module.weight, watch, sight))
            weakref.finalize(owner, handle.remove)
    return sights


def _hook(weight: Tensor, watch: Watch, sight: Sight) -> Callable[..., None]:
    def after_forward(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        of_a_copy = module.weight is not weight
        if of_a_copy or not sight.open or not output.requires_grad:
            return
        x = inputs[0].detach()

        def after_backward(dy: Tensor) -> None:
            with torch.no_grad():
                wide = torch.promote_types(weight.dtype, torch.float32)
                sight.add(watch(x.flatten(0, -2).to(wide), dy.flatten(0, -2).to(wide)))

        output.register_hook(after_backward)

    return after_forward
