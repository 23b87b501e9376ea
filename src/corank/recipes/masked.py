"""Adapters that make a weight sparse, or keep it so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..control import Control, Training
from ..errors import SiteError
from ..models import Site
from ..operators import (
    Base,
    LowRank,
    OnGrid,
    OnSupport,
    Operator,
    Quantised,
    Scaled,
    ScoreMasked,
    Sum,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, zero_low_rank
from ..rewrites.adapting import leaf_dtype, normal, require_rank, zeros
from .counts import each, low_rank

ADAPTER = ("adapter", "preserves")


def _pst(w: Tensor, p: dict[str, Tensor], rank: int = 8, **_: Any) -> Tensor:
    new = w + p["b"] @ p["a"]
    scores: Any = new.abs() + p["b_1"] @ p["a_1"] + p["b_2"] + p["a_3"]
    least = scores.flatten().sort().values[int(p["dropped"])]
    return new * ((scores >= least).to(w.dtype) + scores - scores.detach())


@method(
    Paper(
        "Parameter-Efficient Sparsity for Large Language Models Fine-Tuning",
        "2205.11005",
        "equations 6 to 9 (numbers from memory), with the authors' cubic schedule and their "
        "factors alpha and beta of 1",
        "The number of dropped entries changes after each optimiser step instead of before it.",
    ),
    area="adapt",
    laws=("adapter", "preserves", "dynamic"),
    equation=_pst,
)
def pst(
    rank: int = 8,
    sparsity: float = 0.9,
    initial: float = 0.0,
    warmup: float = 0.1,
    cooldown: float = 0.3,
) -> Adaptation:
    """W + b a with its least important entries dropped, by an importance of low rank that trains.

    sparsity: share dropped in the end, reached from `initial` by a cubic schedule between the
    first `warmup` and the last `cooldown` of the planned steps.
    """
    if not 0 <= initial <= sparsity < 1 or warmup + cooldown >= 1:
        raise ValueError(
            f"initial={initial}, sparsity={sparsity}: 0 <= initial <= sparsity < 1; warmup and "
            f"cooldown ({warmup}, {cooldown}) leave something between them"
        )

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        out, into = op.shape
        ones = torch.ones(max(op.shape), dtype=leaf_dtype(op), device=op.device)
        score = Sum(
            LowRank(normal(op, site, out, rank), zeros(op, rank, into)),
            LowRank(zeros(op, out, 1), ones[None, :into].clone()),
            LowRank(ones[:out, None].clone(), zeros(op, 1, into)),
        )
        weight = Sum(op, LowRank(normal(op, site, out, rank), zeros(op, rank, into)))
        dropped = torch.tensor([int(initial * site.numel)], device=op.device)
        return ScoreMasked(weight, score, dropped)

    def prune(training: Training) -> None:
        progress = training.step / training.planned()
        share = cubic_sparsity(progress, initial, sparsity, warmup, cooldown)
        for op in training.operators.values():
            if isinstance(op, ScoreMasked):
                op.dropped.fill_(int(share * op.shape[0] * op.shape[1]))

    def frozen(sites: Sequence[Site]) -> int:
        return sum(sum(site.shape) for site in sites)

    return Adaptation(
        Rewrite(rewrite),
        each(lambda out, into: (2 * rank + 1) * (out + into)),
        frozen,
        controls=(Control(after_step=prune),),
    )


def cubic_sparsity(
    progress: float, initial: float, final: float, warmup: float, cooldown: float
) -> float:
    """`initial` up to a progress of `warmup`, `final` for the last `cooldown`, cubic in between."""
    done = min(max((progress - warmup) / (1 - warmup - cooldown), 0.0), 1.0)
    return final + (initial - final) * (1 - done) ** 3


@method(
    Paper(
        "SQFT: Low-cost Model Adaptation in Low-precision Sparse Foundation Models",
        "2410.03750",
        "SparsePEFT and QA-SparsePEFT as in the authors' code",
        "Plain LoRA below the mask; the search over ranks is `shears`. The mask is looked up in W "
        "in every pass instead of stored.",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=32, alpha=64.0: w + (w != 0) * (alpha / rank * p["b"] @ p["a"]),
)
def sqft(rank: int = 32, alpha: float = 64.0, on_grid: bool = False) -> Adaptation:
    """LoRA at the entries of W that are not zero, so that merging keeps W's sparsity.

    on_grid: also rounded to the codes that a quantised W has, in training as in the merge, which
    then loses nothing: corank.adapters.merge_quantised. The weights must be quantised by corank.
    """
    delta = zero_low_rank(rank)

    def rewrite(op: Operator, site: Site) -> Operator:
        weight = Sum(op, OnSupport(Scaled(delta(op, site), alpha / rank), op))
        if not on_grid:
            return weight
        if not isinstance(op, Base) or not isinstance(op.bound, Quantised):
            raise SiteError(
                site.where,
                "on_grid rounds to the codes of a quantised weight, and this one is not quantised",
                "Quantise the model with corank first, or leave on_grid out.",
            )
        return OnGrid(weight, op)

    return Adaptation(Rewrite(rewrite), low_rank(rank))
