"""What the calls of `corank.compress` and `corank.quantize` have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
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
    progress: Progress | None
