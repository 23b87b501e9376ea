"""Adapters that train chosen entries, rows or columns, and adapters of sparse weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.sparse_states import move_support
from ..errors import SiteError
from ..linalg import truncated_svd
from ..models import Site
from ..operators import (
    Base,
    Dense,
    LowRank,
    OnGrid,
    OnSupport,
    Operator,
    Quantised,
    Scaled,
    ScoreMasked,
    Sparse,
    Sum,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus, zero_low_rank
from ..rewrites.adapting import leaf_dtype, normal, require_rank, zeros
from ..rewrites.structured import RULES, SelectionRule, choose, chosen_delta, trained
from .counts import each, low_rank

ADAPTER = ("adapter", "preserves")


def _s2ft(w: Tensor, p: dict[str, Tensor], **_: Any) -> Tensor:
    rows = p["weight"].shape == (len(p["index"]), w.shape[1])
    return w.index_add(0 if rows else 1, p["index"].long(), p["weight"])


@method(
    Paper(
        "S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
        "2412.06289",
        "section 3; selection as in the authors' code, over all layers at once",
        "Chosen rows and columns are updated where they stand: the coupled permutation that makes "
        "them contiguous changes no value. Coupled weights train on both sides of a channel; for "
        "the published setting target the down and output projections alone. q and k train rows "
        "of their own. The product rule of the ablation was not found in detail and is left out.",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_s2ft,
)
def s2ft(
    ratio: float = 0.03,
    select: SelectionRule = "random",
    largest: bool = False,
    head_size: int = 1,
) -> Adaptation:
    """A share of the inner channels trains: rows of what makes them, columns of what reads them.

    ratio: of the channels of all layers together (0 to 1; 0.03 is the authors' for mathematics).
    select: "random", or the least (with `largest`, the greatest) by "weight", "activation" or
    "gradient" norm. head_size: attention channels are chosen in whole heads of this size.
    """
    if not 0 < ratio <= 1 or head_size < 1 or select not in RULES:
        raise ValueError(
            f"ratio={ratio} is above 0 and at most 1, head_size={head_size} at least 1, and "
            f"select={select!r} one of {', '.join(RULES)}"
        )
    needed = RULES[select]
    return Adaptation(
        plus(chosen_delta),
        lambda sites: trained(sites, ratio, head_size),
        prepare=lambda sites, ops: choose(sites, ops, ratio, select, largest, head_size),
        needs=frozenset() if needed is None else frozenset({needed}),
    )


def _lift(w: Tensor, p: dict[str, Tensor], **_: Any) -> Tensor:
    active = torch.zeros_like(w).flatten().index_put((p["index"].long(),), p["values"])
    return w + active.view_as(w) + p.get("weight", 0.0)


@method(
    Paper(
        "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for "
        "Reasoning-Focused Supervised Fine-Tuning",
        "2506.00772",
        "section 3, algorithm 1 (numbers from memory); step counter and moments at a refresh as in "
        "the authors' code",
        "W stays as it is: the update of entries that have left the support is kept in a frozen "
        "matrix beside it, which interval=None does without.",
    ),
    area="adapt",
    laws=("adapter", "preserves", "moves_frozen"),
    equation=_lift,
)
def lift(rank: int = 128, filter_rank: int = 128, interval: int | None = 200) -> Adaptation:
    """Only the greatest entries of W's best approximation of a low rank train.

    rank: of the LoRA with as many numbers: rank * (out + in) entries, at most all. filter_rank: of
    the approximation. interval: optimiser steps between refreshes of the support; None: never.
    """
    if rank < 1 or filter_rank < 1 or (interval is not None and interval < 1):
        raise ValueError(
            f"rank={rank}, filter_rank={filter_rank}, interval={interval}: each is at least 1"
        )

    def kept(site: Site) -> int:
        return min(sum(site.shape) * rank, site.numel)

    def rewrite(op: Operator, site: Site) -> Operator:
        weight = op.dense().to(leaf_dtype(op))
        index = _principal(weight, filter_rank, kept(site), site.generator())
        values = zeros(op, kept(site))
        active = Sparse(values, index.int() if site.numel <= 2**31 else index, site.shape)
        if interval is None:
            return Sum(op, active)
        return Sum(op, active, Dense(torch.zeros_like(weight)))

    def refresh(training: Training) -> None:
        if interval is None or training.step % interval:
            return
        for op in training.operators.values():
            active, past = _parts_of(op)
            weight = op.dense()
            index = _principal(weight, filter_rank, active.index.shape[0], training.generator)
            move_support(active, past, index, training.optimizer)

    return Adaptation(
        Rewrite(rewrite),
        lambda sites: sum(kept(site) for site in sites),
        lambda sites: 0 if interval is None else sum(site.numel for site in sites),
        controls=() if interval is None else (Control(after_step=refresh),),
    )


def _parts_of(op: Operator) -> tuple[Sparse, Dense]:
    active = next(m for m in op.modules() if isinstance(m, Sparse))
    return active, next(m for m in op.modules() if isinstance(m, Dense))


def _principal(weight: Tensor, rank: int, count: int, generator: torch.Generator) -> Tensor:
    """Flat places of the `count` greatest magnitudes of the best approximation, ascending."""
    u, s, vh, _ = truncated_svd(weight, min(rank, *weight.shape), generator=generator)
    return ((u * s) @ vh).abs().flatten().topk(count).indices.sort().values


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
