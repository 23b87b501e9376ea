"""Training all singular values of a weight, and in turns a few of its singular vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from ..operators import LowRank, Sum
from ..rewrites import all_triples
from .control import Control, Training
from .restart import forget, slow_down, speed_up


def spectral_rounds(every: int, warmup: int) -> Control:
    """Rounds of `every` steps, over sums of a frozen and a trained U diag(s) V^T, all s trained.

    Vectors move by the gradient without the factor s, and are made unit vectors again after a
    step; values stay at or above zero. A round ends with the singular triples of what the weight
    has become, of which others are trained next; the optimiser forgets, and its rate warms up
    again over `warmup` steps.
    """

    def before_step(training: Training) -> None:
        slow_down(training, warmup)
        for _, active in sums(training):
            inverse = _inverse(active.gate)
            if active.b.grad is not None:
                active.b.grad *= inverse
            if active.a.grad is not None:
                active.a.grad *= inverse[:, None]

    def after_step(training: Training) -> None:
        speed_up(training)
        for rest, active in sums(training):
            active.b.div_(torch.linalg.vector_norm(active.b, dim=0))
            active.a.div_(torch.linalg.vector_norm(active.a, dim=1, keepdim=True))
            for part in (rest, active):
                cast("Tensor", part.gate).clamp_(min=0)
        last = training.total is not None and training.step >= training.total
        if training.step % every == 0 and not last:
            for rest, active in sums(training):
                _next_round(rest, active, training.generator)
            for leaf in training.leaves().values():
                forget(training.attached(), leaf, 1.0)
            training.memory["restarted"] = training.step

    return Control(before_step=before_step, after_step=after_step)


def drawn(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Where `count` singular values stand that were drawn by their share: (m,) bool.

    The chance of value i at a draw, none drawn twice, is in proportion to 1/m + s_i / sum of s.
    """
    s = values.detach().double().cpu()
    chances = 1 / len(s) + s / s.sum().clamp_min(torch.finfo(s.dtype).tiny)
    picked = chances.multinomial(count, generator=generator)
    mask = torch.zeros(len(s), dtype=torch.bool)
    mask[picked] = True
    return mask.to(values.device)


def sums(training: Training) -> Iterator[tuple[LowRank, LowRank]]:
    """The frozen and the trained triples of every site."""
    for op in training.operators.values():
        rest, active = cast("Sum", op).operators
        yield cast("LowRank", rest), cast("LowRank", active)


def _next_round(rest: LowRank, active: LowRank, generator: torch.Generator) -> None:
    u, s, vh = all_triples(Sum(rest, active))
    held = rest.rank + active.rank
    u, s, vh = u[:, :held], s[:held], vh[:held]
    chosen = drawn(s, active.rank, generator)
    for part, where in ((rest, ~chosen), (active, chosen)):
        part.b.copy_(u[:, where])
        part.a.copy_(vh[where])
        cast("Tensor", part.gate).copy_(s[where])


def _inverse(gate: Tensor | None) -> Tensor:
    """1 / s, and 0 where s is: a gradient that is zero stays so."""
    s = cast("Tensor", gate)
    return torch.where(s > torch.finfo(s.dtype).tiny, 1 / s, 0)
