"""Ranks of which the first matter most: sampled prefixes, suffix norms, and what is dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import LowRank
from .control import Training
from .cutting import cut
from .elastic import act_as_drawn
from .penalties import Penalty
from .ranks import mask
from .whole import whole


def draw_prefix(training: Training, everywhere: bool) -> None:
    """Let a random prefix of the ranks act at one site, or at every one; all ranks at the others.

    At the planned end all act.
    """
    ranks = {site: training.low_ranks_of(site)[0].rank for site in training.operators}
    if training.total is None or training.step < training.total:
        sites = list(ranks)
        if not everywhere:
            index = int(torch.randint(len(sites), (), generator=training.generator))
            sites = sites[index : index + 1]
        for site in sites:
            ranks[site] = 1 + int(torch.randint(ranks[site], (), generator=training.generator))
    training.memory["ranks"] = ranks
    act_as_drawn(training)


def suffix_norms(op: LowRank) -> tuple[Tensor, Tensor]:
    """Of both factors: the norm of all ranks from the k-th on, for each k, (r,) twice."""
    squares = whole(op.b).square().sum(0), whole(op.a).square().sum(1)
    b, a = (
        # The root of zero has no gradient.
        s.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(s.dtype).tiny).sqrt()
        for s in squares
    )
    return b, a


def suffix_lasso(weight: float) -> Penalty:
    """weight * the sum of both factors' suffix norms: it takes most from the last ranks."""

    def penalty(training: Training) -> Tensor:
        sums = [torch.stack(suffix_norms(op)).sum() for op in training.low_ranks().values()]
        return weight * torch.stack(sums).sum()

    return penalty


def drop_unimportant(training: Training, threshold: float) -> None:
    """Drop the ranks for good whose suffix norms' product is under the threshold; one stays."""
    for op in training.low_ranks().values():
        b, a = suffix_norms(op)
        kept = b * a >= threshold
        kept[0] = True
        mask(op, kept)
    cut([(training.operators, training.memory)], training.optimizer)
