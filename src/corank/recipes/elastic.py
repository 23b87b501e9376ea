"""Adapters trained at many ranks at once, of which one is chosen afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.elastic import act_as_drawn, draw_rank, full_rank
from ..models import Site
from ..operators import LowRank, Operator, Scaled, Sum, sparsify
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus, zero_low_rank
from ..rewrites.adapting import leaf_dtype
from .counts import each, low_rank
from .dynamic import DYNAMIC, every, gated_delta


def _draw_until_the_end(
    share: bool, space: Sequence[int] | None = None
) -> Callable[[Training], None]:
    def draw(training: Training) -> None:
        if training.total is not None and training.step >= training.total:
            full_rank(training)
        else:
            draw_rank(training, share, space)

    return draw


@method(
    Paper(
        "DyLoRA: Parameter Efficient Tuning of Pre-trained Models using Dynamic Search-Free "
        "Low-Rank Adaptation",
        "2210.07558",
        "the authors' code; algorithm 1 was not read",
        "a rank is drawn for each optimiser step, not for each forward pass; ranks from 1 to "
        "`rank` uniformly, as the code does (the paper allows any range and distribution)",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, rank=8, alpha=16.0, **_: gated_delta(w, p, alpha / rank),
)
def dylora(rank: int = 8, alpha: float = 16.0, frozen: bool = True) -> Adaptation:
    """LoRA trained at a random rank b of 1 to `rank` each step, scaled by alpha / b.

    It serves every rank afterwards: `corank.adapters.set_ranks`, then `compact`. Set the rank
    before evaluating in the middle of a training too. `frozen`: only row b learns, as in the
    authors' script; else rows 1 to b.
    """

    def delta(op: Operator, site: Site) -> LowRank:
        low = zero_low_rank(rank)(op, site)
        return LowRank(low.b, low.a, torch.ones(rank, dtype=low.a.dtype, device=op.device))

    def hold_back(training: Training) -> None:
        for site, last in training.memory["ranks"].items():
            for op in training.low_ranks_of(site):
                others = torch.arange(op.rank, device=op.a.device) != last - 1
                if op.a.grad is not None:
                    op.a.grad.masked_fill_(others[:, None], 0)
                if op.b.grad is not None:
                    op.b.grad.masked_fill_(others, 0)

    control = Control(
        lambda training: draw_rank(training, share=True),
        act_as_drawn,
        before_step=hold_back if frozen else None,
        after_step=_draw_until_the_end(share=True),
    )
    return Adaptation(
        plus(delta, alpha / rank), low_rank(rank), each(lambda out, into: rank),
        controls=(control,),
    )  # fmt: skip


def _shears(
    w: Tensor, p: dict[str, Tensor], rank: int = 32, alpha: float = 64.0, **_: object
) -> Tensor:
    pruned = torch.zeros_like(w).flatten()
    if "index" in p:
        pruned[p["index"].long()] = p["values"]
    return w - pruned.view_as(w) + alpha / rank * (p["b"] * p["mask"]) @ p["a"]


@method(
    Paper(
        "Shears: Unstructured Sparsity with Neural Low-rank Adapter Search",
        "2404.10934",
        "the authors' code",
        "the weight is not pruned: what Wanda would remove is kept beside it, frozen, and "
        "subtracted (sparsity=0 for a weight that is pruned already: nothing is stored then); the "
        "hill climbing of corank.adapters.search_ranks is from the paper's description at second "
        "hand, its neighbourhood is ours",
    ),
    area="adapt",
    laws=("adapter", "dynamic"),
    equation=_shears,
)
def shears(
    rank: int = 32,
    alpha: float = 64.0,
    space: Sequence[int] = (32, 24, 16),
    sparsity: float = 0.5,
) -> Adaptation:
    """LoRA of elastic rank over a pruned weight: one training, then a search for the ranks.

    Each step draws a rank of `space` for each group of sites: query, key and value of a block
    together, every other alone. The scale is alpha / rank at every rank. Afterwards
    `corank.adapters.search_ranks` or `set_ranks`, then `compact`. `sparsity`: share of every row
    of W removed by |W| * norm of its input (Wanda), 0 to 1.
    """
    if not space or not all(1 <= r <= rank for r in space):
        raise ValueError(f"space={tuple(space)} must hold ranks from 1 to rank={rank}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} must be at least 0 and under 1")

    def delta(op: Operator, site: Site) -> LowRank:
        low = zero_low_rank(rank)(op, site)
        return LowRank(low.b, low.a, mask=every(op, rank))

    added = plus(delta, alpha / rank)

    def pruned(op: Operator, site: Site) -> Operator:
        weight = op.dense().detach().to(leaf_dtype(op))
        norms = site.stat("square_mean").to(weight).sqrt()
        order = (weight.abs() * norms).argsort(dim=1)[:, : int(sparsity * weight.shape[1])]
        removed = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, order, True)
        return added(Sum(op, Scaled(sparsify(weight, removed), -1.0)), site)

    control = Control(
        lambda training: draw_rank(training, share=False, space=space),
        act_as_drawn,
        after_step=_draw_until_the_end(share=False, space=space),
    )
    rewrite = Rewrite(pruned, frozenset({"square_mean"})) if sparsity else added
    kept = each(lambda out, into: out * int(sparsity * into))
    return Adaptation(rewrite, low_rank(rank), kept, controls=(control,))
