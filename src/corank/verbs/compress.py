"""`corank.compress`: make a model smaller in place, by any registered method."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..allocation import Allocator
from ..errors import unknown
from ..registry import Cascade
from ..report import Report
from .composing import compose
from .options import Options, Progress
from .searching import OWN, search
from .shrinking import shrink


def compress(
    model: nn.Module,
    method: str | Sequence[Any],
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
    """Rewrite the targeted weights of `model`, in place, so that they store less.

    method: a key of `corank.methods()` of area "compress", and `params` its own parameters; or
        steps, each the key of a method of area "compress" or "quantize", or {key: {name: value}}
        with parameters and, where the step is to have its own, keep, rank, targets, allocate,
        cascade, round_to. They are done in turn under one budget, such as
        ["svd_llm", {"gptq": {"bits": 4}}, {"eora": {"rank": 8}}].
    keep: the fraction, in (0, 1], of the targeted sites' parameters that stays; or
    size: of the whole model, "3.2GB" (bytes) or "1.1B" (parameters); or
    rank: the same rank for every site. Exactly one of the three. Budgets are met from below.
    data, tokenizer, sequence_length (tokens), count (samples), batch_size: calibration inputs, in
        any form that `corank.calibration.batches` reads; needed by methods with statistics.
    loss: `(model, batch) -> scalar` for methods that need gradients; default: the model's own.
    statistics: a file of what calibration gathers: read where it exists, else written, so that
        later calls on the same model save the pass over the data. It must hold what the method
        needs; it does not know which data it is of.
    targets: which weights: "all-linear", "attention", "mlp", "all", a list of name endings,
        "re:REGEX", or a dict of name -> overrides (None skips).
    allocate: how the budget is spread over the sites, a key of `corank.allocation.ALLOCATORS` or a
        callable; default: the method's own.
    round_to: make every rank a multiple of this; a site whose factors would not pay stays dense.
    cascade: "original" or "compressed": take each block's inputs from the model compressed so
        far, and fit the original model's outputs, or the site's own on those inputs.
    spill: a folder for what a cascade would else hold in memory: the blocks' inputs.
    original: the model before an earlier compression, for methods that compensate one; the model
        before fine-tuning, for those that store what it changed (`ere`, `delta_come`). Then `model`
        ends as the original with the change beside it, as adapter "default", `keep` is of the
        targeted weights' bytes, and `size` is of all that the adapter stores.
    heal_minutes, heal_steps: train the result towards the model as it was, on the same data, for so
        long or, which can be repeated, for so many batches; a method that heals by itself does it
        for two minutes where neither is given, 0 leaves it out.
    seed: of everything random; results depend on neither the order of sites nor the device.
    dry_run: plan only: nothing is read but shapes, nothing is changed.
    progress: called with (stage, fraction done).

    Returns a Report of every site, the sizes reached and the time spent. On an error the model is
    as it was. Raises ValueError (SiteError, DataError) with the site and the remedy.
    """
    options = Options(
        keep=keep, size=size, rank=rank, data=data, tokenizer=tokenizer,
        sequence_length=sequence_length, count=count, batch_size=batch_size, loss=loss,
        statistics=statistics, targets=targets, allocate=allocate, round_to=round_to,
        cascade=cascade, spill=spill, original=original, seed=seed, dry_run=dry_run,
        heal_minutes=heal_minutes, heal_steps=heal_steps, progress=progress,
    )  # fmt: skip
    if method == "auto":
        if odd := params.keys() - set(OWN):
            raise unknown("parameter of 'auto'", min(odd), OWN)
        return search(model, options, **params)
    if isinstance(method, str):
        return shrink("compress", model, method, params, options)
    if params:
        raise ValueError(f"{min(params)!r}: parameters of a step stand in the step")
    return compose(model, method, options)
