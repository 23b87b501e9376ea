"""Adapters that train chosen entries, rows or columns of the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.sparse_states import move_support
from ..linalg import truncated_svd
from ..models import Site
from ..operators import (
    Dense,
    Operator,
    Sparse,
    Sum,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus
from ..rewrites.adapting import leaf_dtype, zeros
from ..rewrites.structured import RULES, SelectionRule, choose, chosen_delta, trained

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
