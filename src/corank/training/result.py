"""What a run did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Training:
    """What a run did: losses on the tuning rows before and after, per step, and the time."""

    before: float
    after: float
    steps: int
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)  #: (step, training loss)
    tuning: list[tuple[int, float]] = field(default_factory=list)  #: (step, loss on tuning rows)
    stopped_early: bool = False
    skipped: int = 0  #: steps without a finite gradient

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, perplexities beside the losses."""
        return vars(self) | {
            "perplexity_before": math.exp(min(self.before, 700.0)),
            "perplexity_after": math.exp(min(self.after, 700.0)),
        }
