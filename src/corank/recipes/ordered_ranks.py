"""Low-rank weights whose ranks are ordered while they train: many models in one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.elastic import act_as_drawn
from ..control.ordered import draw_prefix, drop_unimportant, suffix_lasso
from ..control.ranks import truncate
from ..linalg import exact_svd
from ..models import Site
from ..operators import LowRank, Operator
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import kaiming, leaf_dtype, normal, require_rank, trains
from .counts import each, low_rank
from .dynamic import every as every_rank

FACTORIZATION = ("factorization",)


def _product(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    return (p["b"] * p["mask"]) @ p["a"]


@method(
    Paper(
        "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition",
        "2308.14929",
        "the authors' code: the split, the samplers, the hierarchical lasso and the shrinking",
        "a prefix is drawn for each optimiser step, and there is no second, full pass in a step; "
        "ranks that are dropped are gone at once, with the optimiser's moments of them; "
        "importances are looked at every so many steps, not once an epoch",
    ),
    area="train",
    laws=(*FACTORIZATION, "from_w", "preserves", "changes_shape"),
    equation=_product,
)
def maestro(
    group_lasso: float = 5e-3,
    threshold: float = 1e-5,
    every: int = 100,
    sample: Literal["one", "all"] = "one",
) -> Factorization:
    """b a of full rank, of which each step trains the first few: important ranks come first.

    It starts as W's singular triples, their roots in both factors. Each step `sample`s a prefix of
    the ranks, its length uniform, in one site or in all of them. group_lasso weighs the sum over k
    of the norms of both factors' ranks from k on; every `every` steps, ranks are dropped where the
    product of these norms is under `threshold`. All that are left act again at the planned end:
    call `corank.adapters.compact` no earlier, as it drops what does not act.
    """
    if sample not in ("one", "all"):
        raise ValueError(f"sample={sample!r} is neither 'one' nor 'all'")
    if group_lasso < 0 or threshold < 0 or every < 1:
        raise ValueError(
            f"group_lasso={group_lasso}, threshold={threshold}, every={every}: at least 0, 0 and 1"
        )

    def rewrite(op: Operator, site: Site) -> Operator:
        u, s, vh, _ = exact_svd(op.dense().detach().to(leaf_dtype(op)))
        root = s.sqrt()
        return LowRank(trains(u * root), trains(root[:, None] * vh), mask=every_rank(op, len(s)))

    def after_step(training: Training) -> None:
        if training.step % every == 0:
            drop_unimportant(training, threshold)
        draw_prefix(training, sample == "all")

    control = Control(
        start=lambda training: draw_prefix(training, sample == "all"),
        resume=act_as_drawn,
        penalty=suffix_lasso(group_lasso),
        after_step=after_step,
    )
    count = each(lambda out, into: min(out, into) * (out + into))
    return Factorization(Rewrite(rewrite), count, controls=(control,))


@method(
    Paper(
        "SlimmeRF: Slimmable Radiance Fields",
        "2312.10034",
        "tensorial rank incrementation of the authors' code",
        "weights of layers in the place of a radiance field's tensors; a controller sees no loss, "
        "so the rank grows at fixed intervals (the code's least number of steps between "
        "increments), not when the loss changes by a share of itself; the start is kaiming's, "
        "scaled so that W at full rank has a usual start's variance",
    ),
    area="train",
    laws=FACTORIZATION,
    equation=_product,
)
def train_rank_increment(
    rank: int = 64, first: int = 1, increment: int = 1, every: int = 100
) -> Factorization:
    """b a whose rank grows while it trains, so that it can be cut at test time.

    It has `first` ranks at the start and `increment` more every `every` steps, up to `rank`.
    Afterwards `corank.control.ranks.truncate` acts with fewer, and `corank.adapters.compact` drops
    the others.
    """
    if not 1 <= first <= rank or increment < 1 or every < 1:
        raise ValueError(
            f"first={first}, increment={increment}, every={every}: from 1 to rank={rank}, and at "
            "least 1"
        )

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        a, b = kaiming(op, site, rank, op.shape[1]), normal(op, site, op.shape[0], rank)
        b.data.mul_(rank**-0.5)
        return LowRank(b, a, mask=torch.arange(rank, device=op.device) < first)

    def grow(training: Training) -> None:
        acting = first + increment * (training.step // every)
        for op in training.low_ranks().values():
            truncate(op, min(acting, op.rank))

    control = Control(after_step=grow)
    return Factorization(Rewrite(rewrite), low_rank(rank), controls=(control,))
