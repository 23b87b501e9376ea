"""Finished cycles of training: their product kept beside W, and training begun anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..operators import Dense, LowRank, Operator, Scaled, Sum
from .control import Training


def absorb(training: Training, share: float = 1.0) -> None:
    """Move `share` of what every site has learnt into what it keeps; the function stays.

    The operators are Sum(Base, kept, scaled b a), `kept` a frozen Dense or a frozen LowRank with
    ranks to spare, filled from the left. A share of 1 draws a again and leaves b at zero.
    """
    filled = dict(training.memory.get("filled", {}))
    for site, kept, low, scale in _parts(training):
        b, a = low.factors()
        if isinstance(kept, Dense):
            kept.weight.data.addmm_(b, a, alpha=share * scale)
        else:
            at = filled.get(site, 0)
            filled[site] = at + low.rank
            kept.b.data[:, at : filled[site]] = share * scale * b
            kept.a.data[at : filled[site]] = a
        low.b.data.mul_(1 - share)
        if share == 1:
            bound = 1 / math.sqrt(low.shape[1])
            drawn = torch.rand(low.a.shape, generator=training.generator) * 2 * bound - bound
            low.a.data.copy_(drawn)
    training.memory["filled"] = filled


def _parts(training: Training) -> Iterator[tuple[str, Any, LowRank, float]]:
    for site, op in training.operators.items():
        _, kept, added = cast("Sum", op).operators
        inner, scale = (added.operator, added.scale) if isinstance(added, Scaled) else (added, 1.0)
        yield site, kept, cast("LowRank", inner), scale


def forget(optimizer: Optimizer, leaf: nn.Parameter, share: float) -> None:
    """Zero the moments of a leaf where its first moment is smallest, for `share` of the entries.

    All moments lose the same entries: one that kept its first moment and lost its second would
    move by first / eps while b is zero. A share of 1 forgets the whole state, step count too.
    """
    if share >= 1:
        optimizer.state.pop(leaf, None)
        return
    state = optimizer.state.get(leaf, {})
    moments = [t for t in state.values() if isinstance(t, Tensor) and t.shape == leaf.shape]
    dropped = int(leaf.numel() * share)
    if moments and dropped:
        size = moments[0].abs()
        small = size <= size.flatten().kthvalue(dropped).values
        for moment in moments:
            moment.masked_fill_(small, 0)


def slow_down(training: Training, warmup: int) -> None:
    """Before a step: lower the rate where it warms up again, from 1 / warmup to the schedule's.

    Only this one step sees it: `speed_up` puts back what the schedule wants.
    """
    since = training.step - training.memory.get("restarted", training.step - warmup)
    if since >= warmup:
        return
    mine = {id(leaf) for leaf in training.leaves().values()}
    rates: dict[int, Any] = {}
    for index, group in enumerate(training.attached().param_groups):
        if any(id(p) in mine for p in group["params"]):
            rates[index] = group["lr"]
            group["lr"] = group["lr"] * (since + 1) / warmup
    training.memory["rates"] = rates


def speed_up(training: Training) -> None:
    """After a step: undo `slow_down`."""
    for index, rate in training.memory.pop("rates", {}).items():
        training.attached().param_groups[index]["lr"] = rate


def spare(op: Operator, ranks: int, dtype: torch.dtype) -> Dense | LowRank:
    """Frozen zeros with room for `ranks` ranks: factors, or a matrix if that is fewer numbers."""
    out, into = op.shape

    def empty(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=op.device)

    if ranks * (out + into) < out * into:
        return LowRank(empty(out, ranks), empty(ranks, into))
    return Dense(empty(out, into))
