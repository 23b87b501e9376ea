"""Adapters whose ranks come and go while they train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..control import Control, Training
from ..control import ranks as rank_actions
from ..control.penalties import orthogonality, sparse_gates
from ..control.proximal import soft_threshold
from ..control.schedules import cubic
from ..control.scores import follow_sensitivity, triplet_scores
from ..control.selection import global_top
from ..models import Site
from ..operators import LowRank, Operator
from ..registry import Adaptation, Paper, method
from ..rewrites import plus, zero_low_rank
from ..rewrites.adapting import Delta, normal, require_rank, zeros
from .counts import each

DYNAMIC = ("adapter", "preserves", "dynamic")


def gated_delta(w: Tensor, p: dict[str, Tensor], scale: float) -> Tensor:
    """W + scale * b diag(gate) a."""
    return w + scale * (p["b"] * p["gate"]) @ p["a"]


def pseudo_singular(rank: int, masked: bool = False) -> Delta:
    """P diag(lambda) Q with P and Q near zero and lambda zero: AdaLoRA's start."""

    def delta(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        out, into = op.shape
        a, b = (normal(op, site, *shape, std=0.02) for shape in ((rank, into), (out, rank)))
        return LowRank(b, a, zeros(op, rank), every(op, rank) if masked else None)

    return delta


def every(op: Operator, rank: int) -> Tensor:
    """A mask that lets every rank act."""
    return torch.ones(rank, dtype=torch.bool, device=op.device)


@method(
    Paper(
        "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "2303.10512",
        "the authors' code and PEFT's RankAllocator; the paper's equations were not read",
        "scaled by alpha / init_r, where PEFT divides by init_r + 1e-5; in the last tfinal steps "
        "the ranks that lost are masked and leave the penalty, where PEFT zeroes their gates after "
        "every step; a budget "
        "equal to all ranks keeps all (PEFT's threshold raises there)",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, init_r=12, alpha=8.0, **_: gated_delta(w, p, alpha / init_r),
)
def adalora(
    target_r: int = 8,
    init_r: int = 12,
    alpha: float = 8.0,
    tinit: int = 0,
    tfinal: int = 0,
    deltaT: int = 1,
    beta1: float = 0.85,
    beta2: float = 0.85,
    orth_reg_weight: float = 0.5,
) -> Adaptation:
    """P diag(lambda) Q, whose ranks are cut to a global budget by their sensitivity.

    The budget over all weights falls with a cube from init_r each to target_r each, between step
    `tinit` and `tfinal` before the last, at every step that `deltaT` divides. Defaults are PEFT's.
    """
    if not 1 <= target_r <= init_r:
        raise ValueError(f"target_r={target_r} must be from 1 to init_r={init_r}")

    def remember_budget(training: Training) -> None:
        if tinit >= training.planned() - tfinal:
            raise ValueError(
                f"tinit={tinit} and tfinal={tfinal} leave no step of {training.planned()} to "
                "allocate ranks in"
            )
        training.memory["weights"] = len(training.low_ranks())

    def allocate(training: Training) -> None:
        step, last = training.step, training.planned() - tfinal
        weights = training.memory["weights"]
        if step < last:
            follow_sensitivity(training, beta1, beta2)
        if not tinit < step <= last or (step < last and step % deltaT):
            return
        budget = int(cubic(step, init_r * weights, target_r * weights, tinit, last))
        products = training.low_ranks()
        for name, kept in global_top(triplet_scores(training), budget).items():
            rank_actions.zero(products[name], kept)
            if step == last:
                rank_actions.mask(products[name], kept)

    control = Control(remember_budget, penalty=orthogonality(orth_reg_weight), after_step=allocate)
    return Adaptation(
        plus(pseudo_singular(init_r, masked=True), alpha / init_r),
        each(lambda out, into: init_r * (out + into + 1)),
        controls=(control,),
    )


@method(
    Paper(
        "Sparse Low-rank Adaptation of Pre-trained Language Models",
        "2311.11696",
        "the authors' code; the paper's equations were not read",
        "the threshold is used as given, as in the published script (the paper's proximal step "
        "multiplies it by the rate); the gate shares the optimiser of the factors; a list of "
        "thresholds is gone through in equal shares of one training, where the authors train each "
        "stage by itself",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, rank=8, alpha=16.0, **_: gated_delta(w, p, alpha / rank),
)
def sora(
    rank: int = 8,
    alpha: float = 16.0,
    l1: float = 1e-3,
    threshold: float | Sequence[float] = 1e-3,
) -> Adaptation:
    """LoRA with a gate on every rank, driven to exact zeros by a proximal step.

    `threshold`: how far every gate moves to zero at each step; several make a schedule.
    `l1`: weight of the mean |gate| in the loss. Defaults are the authors' code's.
    """
    levels = [threshold] if isinstance(threshold, (int, float)) else list(threshold)

    def delta(op: Operator, site: Site) -> LowRank:
        low = zero_low_rank(rank)(op, site)
        return LowRank(low.b, low.a, normal(op, site, rank))

    def shrink(training: Training) -> None:
        stage = 0
        if len(levels) > 1:
            stage = min(training.step * len(levels) // training.planned(), len(levels) - 1)
        for op in training.low_ranks().values():
            if op.gate is not None:
                soft_threshold(op.gate, levels[stage])

    return Adaptation(
        plus(delta, alpha / rank),
        each(lambda out, into: rank * (out + into + 1)),
        controls=(Control(penalty=sparse_gates(l1), after_step=shrink),),
    )
