"""Steps done in turn, and done anew until the model they end with is within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..calibration import Batches
from ..engine.summary import model_sizes
from ..models import Site, snapshot
from ..report import Report
from .options import Options
from .shrinking import shrink
from .steps import Step

#: Tries to meet a budget from below, and how near is near enough.
TRIES, NEAR = 6, 0.99
#: How far below the budget a try aims.
MARGIN = 0.003
#: What the size after one that was over the budget is at least and at most, over that one.
LEAST, STEP = 0.25, 0.99
#: Batches that later steps read while a size is looked for: their bytes hardly depend on data.
ROUGHLY = 1


class Turns:
    """The steps, done anew from the model as it was, at a size of the free one."""

    def __init__(
        self, model: nn.Module, steps: Sequence[Step], free: int | None, options: Options,
        statistics: Any,
    ) -> None:  # fmt: skip
        self.model, self.steps, self.free, self.options = model, steps, free, options
        self.statistics = statistics
        self.later = options.data

    def roughly(self) -> Turns:
        """The same, but steps after the first read little data, for their bytes alone."""
        if not isinstance(self.later, Batches) or len(self.later) <= ROUGHLY:
            return self
        rough = Turns(self.model, self.steps, self.free, self.options, self.statistics)
        rough.later = Batches(self.later[:ROUGHLY])
        return rough

    @property
    def free_is_last(self) -> bool:
        return self.free == len(self.steps) - 1

    def __call__(self, keep: float | None, size: str | None = None) -> list[Report]:
        """Every step in turn; `keep` or `size` is the free one's."""
        reports = []
        for turn, step in enumerate(self.steps):
            free = turn == self.free
            options = step.options(
                self.options, keep=keep if free else None, size=size if free else None,
                heal_minutes=0.0, heal_steps=None,
                statistics=self.statistics if turn == 0 else None,
                data=self.later if turn else self.options.data,
                original=self.options.original if step.repairs and turn else None,
            )  # fmt: skip
            verb, key = step.method.area, step.method.key
            reports.append(shrink(verb, self.model, key, dict(step.parameters), options))
        return reports


def meet(turns: Turns, sites: Sequence[Site], most: int | None, rest: int) -> list[Report]:
    """The steps at the largest size found for the free one that stays within `most` bytes.

    most: of the whole model; `rest` of them are of what no step rewrites.
    """
    if most is None or turns.free is None or turns.free_is_last:
        size = None if most is None or turns.free is None else f"{most / 1000}KB"
        reports = turns(None, size)
        return _within(turns, reports, most)
    start = snapshot(turns.model, sites)
    keep, enough = 1.0, rest + NEAR * (most - rest)
    rough = turns.roughly()
    if rough is not turns:
        found = _fit(rough, keep, enough, start, sites, most, rest)
        keep, enough = found.keep, min(enough, found.reached)
    best = _fit(turns, keep, enough, start, sites, most, rest)
    best.put_back()
    return best.reports


@dataclass(frozen=True)
class _Fit:
    """A try that is within the budget: the size, the bytes of the whole model, how to get it."""

    keep: float
    reached: int
    reports: list[Report]
    put_back: Callable[[], None]


def _fit(
    turns: Turns, keep: float, enough: float, start: Callable[[], None], sites: Sequence[Site],
    most: int, rest: int,
) -> _Fit:  # fmt: skip
    """The largest of the tries within `most` bytes, from `keep` on until `enough` are used."""
    best: _Fit | None = None
    failed: ValueError | None = None
    tried: list[tuple[float, int]] = []
    while keep > 0 and len(tried) < TRIES:
        start()
        try:
            reports = turns(keep)
        except ValueError as error:
            if not tried:
                raise
            failed = error
            break
        reached = model_sizes(turns.model)["bytes"]
        tried.append((keep, reached))
        if reached <= most and (best is None or reached > best.reached):
            best = _Fit(keep, reached, reports, snapshot(turns.model, sites))
        if reached <= most and (keep == 1.0 or reached >= enough):
            break
        keep = _next(tried, most - MARGIN * (most - rest), most, rest)
        if any(keep == other for other, _ in tried):
            break
    if best is None:
        why = f". With less for {turns.steps[turns.free or 0].label}: {failed}" if failed else ""
        raise ValueError(
            f"the budget of {most:,} bytes for the whole model is below the smallest reached, "
            f"{min(b for _, b in tried):,}, by {' + '.join(s.label for s in turns.steps)}: raise "
            f"it{why}"
        ) from failed
    return best


def _next(tried: Sequence[tuple[float, int]], aim: float, most: int, rest: int) -> float:
    """Where the bytes, affine in the size, would be `aim`.

    Where they are over `most`, less than before, if not by much, since bytes may have been flat;
    where they always were, no more than if all but `rest` shrank alike.
    """
    keep, reached = tried[-1]
    other, fewer = tried[-2] if len(tried) > 1 else (0.0, rest)
    slope = (reached - fewer) / (keep - other)
    found = keep - (reached - aim) / slope if slope > 0 else keep
    if reached <= most:
        return min(found, 1.0)
    if min(bytes_ for _, bytes_ in tried) > most:
        found = min(found, keep * (aim - rest) / (reached - rest))
    return max(LEAST * keep, min(found, STEP * keep))


def _within(turns: Turns, reports: list[Report], most: int | None) -> list[Report]:
    reached = model_sizes(turns.model)["bytes"]
    if most is not None and reached > most:
        raise ValueError(
            f"the steps {' + '.join(s.label for s in turns.steps)} have sizes of their own and "
            f"reach {reached:,} bytes for the whole model, over the budget of {most:,}: fewer "
            "bits or a lower rank, or leave one step's size to the budget"
        )
    return reports
