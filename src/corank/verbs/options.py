"""What the calls of `corank.compress` and `corank.quantize` have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..allocation import Allocator
from ..registry import Cascade

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """The arguments that the two verbs share; `corank.compress` says what each means."""

    keep: float | None
    size: str | None
    rank: int | None
    data: Any
    tokenizer: Any
    sequence_length: int
    count: int | None
    batch_size: int
    loss: Callable[[nn.Module, Any], Any] | None
    statistics: str | os.PathLike[str] | None
    targets: Any
    allocate: str | Allocator | None
    round_to: int
    cascade: Cascade | None
    spill: str | os.PathLike[str] | None
    original: nn.Module | None
    seed: int
    dry_run: bool
    heal_minutes: float | None
    heal_steps: int | None
    progress: Progress | None

    def __post_init__(self) -> None:
        if self.heal_minutes and self.heal_steps:
            raise ValueError("say how long to heal by one of heal_minutes= and heal_steps=")

    def healing(self, own: float = 0.0) -> dict[str, float]:
        """How long to heal, as `corank.heal` takes it, and nothing for not at all.

        own: minutes, where neither was said.
        """
        if self.heal_steps:
            return {"steps": self.heal_steps}
        if self.heal_minutes is not None or self.heal_steps is not None:
            own = self.heal_minutes or 0.0
        return {"minutes": own} if own > 0 else {}

    def unhealed(self) -> Options:
        """The same, without any healing."""
        return replace(self, heal_minutes=0.0, heal_steps=None)
