"""What one method does while its leaves train, as functions over a shared view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..models import Site
from ..operators import LowRank, Operator

#: What `Training.memory` calls the number of steps that a schedule was begun with.
_PLANNED = "planned"


@dataclass(eq=False)
class Training:
    """What a control sees: the operators of one adapter, or of the weights that one call
    factorised, by site name, and what it remembers.

    `memory` holds tensors and JSON values, and nothing else may be remembered: it is what a
    checkpoint stores. `step` counts optimiser steps done; `total` is how many are planned, where
    that is known. `optimizer` is there from the first step on.
    """

    model: nn.Module
    name: str
    sites: Mapping[str, Site]
    operators: dict[str, Operator]
    total: int | None = None
    step: int = 0
    optimizer: Optimizer | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    memory: dict[str, Any] = field(default_factory=dict)

    def leaves(self) -> dict[str, nn.Parameter]:
        """The operators' own parameters that train now, by "<site>/<leaf>", each once."""
        found: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for site, op in self.operators.items():
            for name, leaf in op.named_parameters():
                if leaf.requires_grad and id(leaf) not in seen:
                    seen.add(id(leaf))
                    found[f"{site}/{name}"] = leaf
        return found

    def low_ranks(self) -> dict[str, LowRank]:
        """The low-rank products of which something trains, by "<site>/<path>", each once."""
        found: dict[str, LowRank] = {}
        seen: set[int] = set()
        for site, op in self.operators.items():
            for path, part in op.named_modules():
                trains = any(p.requires_grad for p in part.parameters())
                if isinstance(part, LowRank) and trains and id(part) not in seen:
                    seen.add(id(part))
                    found[f"{site}/{path}"] = part
        return found

    def low_ranks_of(self, site: str) -> list[LowRank]:
        """Those of `low_ranks` that stand at a site."""
        return [op for name, op in self.low_ranks().items() if name.startswith(f"{site}/")]

    def planned(self) -> int:
        """Optimiser steps planned, which from now on stay as they are.

        Raises ValueError where the controller was not told, or told otherwise before.
        """
        if self.total is None:
            raise ValueError(
                f"{self.name!r} follows a schedule over the whole training: give "
                "corank.controller(model, total_steps=...)"
            )
        self.require_plan(self.total, self.memory)
        self.memory[_PLANNED] = self.total
        return self.total

    def require_plan(self, total: int | None, memory: Mapping[str, Any]) -> None:
        """Raise ValueError if the schedule in `memory` is over another number of steps."""
        begun = memory.get(_PLANNED, total)
        if total is not None and begun != total:
            raise ValueError(
                f"{self.name!r} follows a schedule that was begun with other settings: "
                f"total_steps was {begun} and is {total}"
            )

    def attached(self) -> Optimizer:
        """The optimiser. Raises ValueError where the controller was not attached to one."""
        if self.optimizer is None:
            raise ValueError(
                f"{self.name!r} acts on the optimiser: call controller.attach(optimizer)"
            )
        return self.optimizer


Hook = Callable[[Training], None]


@dataclass(frozen=True)
class Control:
    """A method's behaviour while training; parts left out do nothing.

    `start` runs once, before the first step, and not again after a resume; `resume` runs when a
    saved memory was loaded, to let the leaves be as it says; `penalty` is added to
    the loss, a scalar; `before_step` runs when the gradients are there, `after_step` when the
    optimiser has moved. `learning_rates` maps a leaf's last name ("b") to a factor on the rate, or
    is a function of the training that maps whole names ("<site>/<leaf>").
    """

    start: Hook | None = None
    resume: Hook | None = None
    penalty: Callable[[Training], Tensor] | None = None
    before_step: Hook | None = None
    after_step: Hook | None = None
    learning_rates: Mapping[str, float] | Callable[[Training], Mapping[str, float]] = field(
        default_factory=dict
    )
