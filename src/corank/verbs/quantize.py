"""`corank.quantize`: a model's weights in few bits, in place, by any registered method."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import nn

from ..allocation import Allocator
from ..registry import Cascade
from ..report import Report
from .options import Options, Progress
from .shrinking import shrink


def quantize(
    model: nn.Module,
    method: str,
    *,
    keep: float | None = None,
    size: str | None = None,
    rank: int | None = None,
    data: Any = None,
    tokenizer: Any = None,
    sequence_length: int = 256,
    count: int | None = None,
    batch_size: int = 8,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    targets: Any = "all-linear",
    allocate: str | Allocator | None = None,
    round_to: int = 1,
    cascade: Cascade | None = None,
    spill: str | os.PathLike[str] | None = None,
    original: nn.Module | None = None,
    seed: int = 0,
    dry_run: bool = False,
    heal_minutes: float | None = None,
    heal_steps: int | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Report:
    """Store the targeted weights of `model`, in place, in few bits, with or without factors beside.

    method: a key of `corank.methods()` of area "quantize"; `params` are its own parameters, such
        as `bits` (2 to 8) and `group`, how many neighbours in a row share a scale.
    keep, size, rank: at most one, and only where the method has something to choose. `keep` is the
        fraction, in (0, 1], of the bytes that the targeted weights store now; `size` that of the
        whole model ("1.2GB"); `rank` of the factors at every site. Without one the method's own
        rank is taken.

    The other arguments are those of `corank.compress`. Scales are kept in the weight's dtype, codes
    packed without gaps. Methods meant for fine-tuning leave the factors trainable, and only them.

    Returns a Report of every site, the bytes reached and the time spent. On an error the model is
    as it was. Raises ValueError (SiteError, DataError) with the site and the remedy.
    """
    if not isinstance(method, str):
        raise ValueError("steps are corank.compress's: corank.quantize takes the key of one method")
    return shrink(
        "quantize", model, method, params,
        Options(
            keep=keep, size=size, rank=rank, data=data, tokenizer=tokenizer,
            sequence_length=sequence_length, count=count, batch_size=batch_size, loss=loss,
            statistics=statistics, targets=targets, allocate=allocate, round_to=round_to,
            cascade=cascade, spill=spill, original=original, seed=seed, dry_run=dry_run,
            heal_minutes=heal_minutes, heal_steps=heal_steps, progress=progress,
        ),
    )  # fmt: skip
