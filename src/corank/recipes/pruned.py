"""Adapters whose entries are zeroed, or whose factors are frozen, while they train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from ..control import Control, Training
from ..control.retiring import freeze, keep_frozen
from ..control.schedules import cubic, linear
from ..control.scores import follow_gradients, follow_importance
from ..control.selection import top_share
from ..errors import SiteError
from ..models import Site
from ..operators import Diagonal, LowRank, Observed, Operator, Product, Scaled, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus, zero_low_rank
from ..rewrites.adapting import kaiming, leaf_dtype, ones, require_rank, zeros
from .counts import each, low_rank
from .dynamic import DYNAMIC


@method(
    Paper(
        "PRILoRA: Pruned and Rank-Increasing Low-Rank Adaptation",
        "2401.11316",
        "the abstract: ranks that grow linearly over the layers; a pruned by magnitude and "
        "accumulated input statistics; no section was read, and no code was found",
        "that a alone is pruned is from third parties' summaries. Ours: the score |a_ij| * "
        "root of the moving mean of x_j^2, "
        "compared within a row of a; interval, share and decay; zeroed entries may grow again; the "
        "scale alpha / (rank of the layer); a weight outside the blocks gets the mean rank",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, alpha=16.0, **_: w + alpha / p["a"].shape[0] * p["b"] @ p["a"],
)
def prilora(
    first: int = 4,
    last: int = 12,
    depth: int = 12,
    alpha: float = 16.0,
    sparsity: float = 0.5,
    interval: int = 40,
    beta: float = 0.9,
) -> Adaptation:
    """LoRA of rank `first` in the first of `depth` blocks to `last` in the last, a kept sparse.

    Every `interval` steps the `sparsity` (0 to 1) least important entries of each row of a are
    set to zero. `beta`: decay of the mean of the inputs' squares.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} must be at least 0 and under 1")

    def rank_of(site: Site) -> int:
        if site.layer is None:
            return (first + last) // 2
        if site.layer >= depth:
            raise SiteError(
                site.where, f"block {site.layer} is beyond depth={depth}",
                "Give depth= the number of blocks.",
            )  # fmt: skip
        return int(linear(site.layer, first, last, 0, max(depth - 1, 1)))

    def rewrite(op: Operator, site: Site) -> Operator:
        if site.kind in ("embedding", "conv"):
            raise SiteError(
                site.where, "prilora follows the inputs of linear weights only",
                "Leave this site out of targets.",
            )  # fmt: skip
        rank = rank_of(site)
        squares = torch.zeros(op.shape[1], dtype=leaf_dtype(op), device=op.device)
        added = Scaled(zero_low_rank(rank)(op, site), alpha / rank)
        return Sum(op, Observed(added, squares, beta))

    def prune(training: Training) -> None:
        if training.step % interval:
            return
        for whole in training.operators.values():
            for op in whole.modules():
                if isinstance(op, Observed):
                    a = cast("LowRank", cast("Scaled", op.operator).operator).a
                    kept = top_share(a.abs() * op.square_mean.sqrt(), 1 - sparsity, axis=1)
                    a.data.masked_fill_(~kept, 0)

    def count(sites: Sequence[Site]) -> int:
        return sum(rank_of(site) * sum(site.shape) for site in sites)

    return Adaptation(Rewrite(rewrite), count, controls=(Control(after_step=prune),))


@method(
    Paper(
        "RoseLoRA: Row and Column-wise Sparse Low-rank Adaptation of Pre-trained Language Model "
        "for Knowledge Editing and Fine-tuning",
        "2406.10777",
        "the authors' code for editing; the paper's equations were not read",
        "the code's clamping of the factors to 3e-3 and its early stop are left out; int(size "
        "(1 - keep)) entries of each row or column are zeroed, one more than by the code",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, rank=8, alpha=32.0, **_: w + alpha / rank * p["b"] @ p["a"],
)
def roselora(
    rank: int = 8,
    alpha: float = 32.0,
    keep: float = 0.05,
    first: int = 3,
    last: int = 20,
    beta: float = 0.8,
) -> Adaptation:
    """LoRA with every column of b and every row of a kept sparse, by smoothed sensitivity.

    The kept share falls with a cube from 1 at step `first` to `keep` (0 to 1) at step `last`,
    steps counted from 0. Defaults are those for editing 25 steps long; zeroed entries may return.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be over 0 and at most 1")

    def prune(training: Training) -> None:
        share = cubic(training.step - 1, 1.0, keep, first, last)
        for name, leaf in training.leaves().items():
            importance = training.memory.get(f"importance:{name}")
            if importance is not None:
                axis = 1 if name.endswith(".a") else 0
                leaf.data.masked_fill_(~top_share(importance, share, axis), 0)

    control = Control(
        before_step=lambda training: follow_importance(training, beta), after_step=prune
    )
    return Adaptation(plus(zero_low_rank(rank), alpha / rank), low_rank(rank), controls=(control,))


@method(
    Paper(
        "AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning of "
        "Large Models",
        "2403.13269",
        "the authors' code; the paper's equations were not read",
        "the schedule's ends are shares of the planned steps, from the epochs of the scripts",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, **_: w + p["diagonal"][:, None] * (p["b"] * p["gate"]) @ p["a"],
)
def aflora(
    rank: int = 4,
    interval: int = 10,
    warmup: float = 0.05,
    final: float = 0.7,
    beta1: float = 0.85,
    beta2: float = 0.95,
) -> Adaptation:
    """W + diag(m) b diag(gate) a, whose factors are frozen one by one by their gradients.

    A factor of a square weight is frozen from the start. Every `interval` steps, those of the
    others freeze whose mean score lies under a quantile that rises, with a cube, from 0 after
    the `warmup` share of the steps to 1 at the last `final` share.
    """
    if not 0 <= warmup < 1 - final <= 1:
        raise ValueError(f"warmup={warmup} and final={final} must leave steps between them")

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        out, into = op.shape
        a, b = kaiming(op, site, rank, into), kaiming(op, site, out, rank)
        for leaf in (a, b):
            leaf.data.mul_(math.sqrt(6))  # kaiming-uniform of gain sqrt(2)
            leaf.requires_grad_(out != into)
        gate = nn.Parameter(0.1 * ones(op, rank).detach())
        return Sum(op, Product(Diagonal(zeros(op, out)), LowRank(b, a, gate)))

    def freeze_some(training: Training) -> None:
        scores = follow_gradients(training, _factors(training), interval, beta1, beta2)
        if not scores:
            return
        total = training.planned()
        left = cubic(training.step, 1.0, 0.0, int(warmup * total), int((1 - final) * total))
        entries = torch.cat([score.flatten() for score in scores.values()])
        index = int(entries.numel() * (1 - left))
        if index:
            threshold = entries.kthvalue(index).values
            freeze(training, [name for name, score in scores.items() if score.mean() <= threshold])

    control = Control(resume=keep_frozen, before_step=keep_frozen, after_step=freeze_some)
    return Adaptation(
        Rewrite(rewrite),
        each(lambda out, into: rank + out + (0 if out == into else rank * (out + into))),
        each(lambda out, into: rank * (out + into) if out == into else 0),
        controls=(control,),
    )


def _factors(training: Training) -> dict[str, nn.Parameter]:
    return {n: leaf for n, leaf in training.leaves().items() if n.endswith((".a", ".b"))}
