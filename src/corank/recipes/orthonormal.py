"""Adapters in the form of a singular value decomposition, held to it by a penalty."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..control import (
    Control,
    Training,
    orthonormality,
    peak_learning_rate,
    trained_low_ranks,
    whole,
)
from ..errors import SiteError
from ..models import Site
from ..operators import LowRank, Operator, Scaled, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, leading, split, trailing
from ..rewrites.adapting import kaiming, normal, trains, zeros
from .counts import each, low_rank


def _sorsa(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    return w - p["b"] @ p["gate"].diag() @ p["a"] + p["b_1"] @ p["gate_1"].diag() @ p["a_1"]


@method(
    Paper(
        "SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large "
        "Language Models",
        "2409.00055",
        "the parameterisation and its regulariser, as in the authors' package; the paper's "
        "equations were not read",
        "no alpha, which the authors' package has and says that the paper has not; the start is "
        "held frozen beside W in place of a residual",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_sorsa,
)
def sorsa(rank: int = 4, gamma: float = 4e-4) -> Adaptation:
    """The leading singular triples train, their vectors held orthonormal.

    rank is the default of the authors' package, gamma the value of their runs.
    gamma: weight of the mean of ||U.T U - I||_F over all trained U and V; its gradient is divided
    by the optimiser's largest learning rate, so that a step of plain descent is gamma long.
    """

    def principal(op: Operator, site: Site) -> LowRank:
        u, s, vh = leading(op, site, rank)
        return LowRank(trains(u), trains(vh), trains(s))

    def penalty(training: Training) -> Tensor:
        found = trained_low_ranks(training)
        sides = [part.b for part in found] + [part.a.mT for part in found]
        mean = torch.stack([orthonormality(side) for side in sides]).mean()
        return gamma / peak_learning_rate(training) * mean

    count = each(lambda out, into: rank * (out + into + 1))
    controls = [Control(penalty=penalty)] if gamma else []
    return Adaptation(split(principal), count, count, controls=controls)


def _kasa(
    w: Tensor, p: dict[str, Tensor], rank: int = 8, alpha: float = 16.0, **_: object
) -> Tensor:
    return w - p["b"] @ p["a"] + alpha / rank * p["b_1"] @ p["gate"].diag() @ p["a_1"]


@method(
    Paper(
        "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models",
        "2412.06071",
        "equations 9 to 12 for the loss",
        "the penalty is summed over the weights, as in PEFT, and not divided by their number, as "
        "in the authors' code; the triples that are cut are held beside W, which is not changed",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_kasa,
)
def kasa(rank: int = 8, alpha: float = 16.0, beta: float = 1e-4, gamma: float = 1e-3) -> Adaptation:
    """W without its smallest singular triples, plus (alpha / rank) b diag(s) a in their place.

    beta weighs the sum of s^2 in the loss, gamma ||b.T b - I||_F + ||a a.T - I||_F. The start is
    the truncated weight, and not W.
    """

    def rewrite(op: Operator, site: Site) -> Operator:
        if rank >= min(site.shape):
            raise SiteError(
                site.where, f"rank {rank} leaves nothing of the weight", "Ask for a smaller one."
            )
        u, s, vh = trailing(op, site, rank)
        (out, into) = op.shape
        added = LowRank(zeros(op, out, rank), kaiming(op, site, rank, into), normal(op, site, rank))
        return Sum(op, Scaled(LowRank(u * s, vh), -1.0), Scaled(added, alpha / rank))

    def penalty(training: Training) -> Tensor:
        terms = [
            beta * whole(cast("Tensor", part.gate)).square().sum()
            + gamma * (orthonormality(part.b) + orthonormality(part.a.mT))
            for part in trained_low_ranks(training)
        ]
        return torch.stack(terms).sum()

    return Adaptation(
        Rewrite(rewrite),
        each(lambda out, into: rank * (out + into + 1)),
        low_rank(rank),
        controls=[Control(penalty=penalty)],
    )
