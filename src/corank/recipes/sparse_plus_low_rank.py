"""Low-rank factors together with a sparse matrix whose support stays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models import Site
from ..operators import Activated, Dense, LowRank, Operator, Product, Scaled, Select, Sparse, Sum
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite, leading, rooted, zero_low_rank
from ..rewrites.adapting import trains, uniform
from ..rewrites.decomposed import wide
from .counts import each

FACTORIZATION = ("factorization",)


def random_values(op: Operator, site: Site, shape: tuple[int, int], count: int) -> Sparse:
    """A Sparse with `count` places, each as likely, and trainable values uniform within 1/sqrt(in),
    drawn by the site."""
    numel = shape[0] * shape[1]
    index = torch.randperm(numel, generator=site.draws())[:count].sort().values
    index = (index.int() if numel <= 2**31 else index).to(op.device)
    return Sparse(uniform(op, site, count, bound=1 / math.sqrt(shape[1])), index, shape)


@method(
    Paper(
        "SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
        "2406.02214",
        "section 3 and the authors' code: W = alpha / r B A + S",
        "the support is stored as one flat index of 32 bits per value, where the authors' code "
        "stores 64 bits; rank and alpha are those of their 60M configuration",
    ),
    area="train",
    laws=FACTORIZATION,
    equation=lambda w, p, rank=128, alpha=32.0, **_: (
        alpha / rank * p["b"] @ p["a"]
        + torch.zeros_like(w).flatten().index_put((p["index"].long(),), p["values"]).view_as(w)
    ),
)
def sltrain(rank: int = 128, alpha: float = 32.0, density: float = 0.03) -> Factorization:
    """(alpha / rank) b a plus a sparse matrix of random, fixed support.

    density: the share, over 0 and under 1, of the weight's places that are in the support. b
    starts at zero, a as LoRA's, the sparse values uniform within 1 / sqrt(in).
    """
    if not 0 < density < 1:
        raise ValueError(f"density={density} must be over 0 and under 1")

    def chosen(out: int, into: int) -> int:
        return max(1, int(density * out * into))

    def rewrite(op: Operator, site: Site) -> Operator:
        low = Scaled(zero_low_rank(rank)(op, site), alpha / rank)
        return Sum(low, random_values(op, site, op.shape, chosen(*op.shape)))

    count = each(lambda out, into: rank * (out + into) + chosen(out, into))
    return Factorization(Rewrite(rewrite), count)


def _lost(w: Tensor, p: dict[str, Tensor], gamma: float = 0.7, **_: object) -> Tensor:
    """Without an activation; its leaves are b, a and the columns, in that order."""
    columns = torch.zeros_like(w).index_copy(1, p["index"], p["weight"])
    return gamma * p["b"] @ p["a"] + (1 - gamma) * columns


@method(
    Paper(
        "LOST: Low-rank and Sparse Pre-training for Large Language Models",
        "2508.02668",
        "the abstract, and its reviews' description of the layer; equations not read",
        "the reviews say that an activation stands between the factors and not which: SiLU is "
        "ours, and so are gamma, density and rank; the roots of the singular values go to both "
        "factors",
    ),
    area="train",
    laws=(*FACTORIZATION, "from_w", "nonlinear"),
    equation=_lost,
)
def lost(
    rank: int = 128, density: float = 0.03, gamma: float = 0.7, activation: str | None = "silu"
) -> Factorization:
    """gamma b f(a x) + (1 - gamma) of some columns, all started from W.

    b a starts as W's leading triples; the columns, a share `density` (over 0, to 1) of all, are
    those of W where the rest that b a leaves is longest. gamma: between 0 and 1. activation: f,
    one of "gelu", "relu", "silu" and "tanh". With one the weight is no matrix, so it cannot be
    merged, only saved as it is; with None it can.
    """
    if not (0 < density <= 1 and 0 < gamma < 1):
        raise ValueError(f"density={density} must be over 0 to 1, gamma={gamma} between 0 and 1")

    def chosen(into: int) -> int:
        return max(1, int(density * into))

    def rewrite(op: Operator, site: Site) -> Operator:
        w = wide(op)
        b, a = rooted(leading(op, site, rank))
        rest = torch.linalg.vector_norm(w - b @ a, dim=0)
        index = rest.topk(chosen(op.shape[1])).indices.sort().values
        columns = Product(Dense(trains(w[:, index])), Select(index, op.shape[1]))
        if activation is None:
            low: Operator = LowRank(trains(b), trains(a))
        else:
            low = Product(Dense(trains(b)), Activated(Dense(trains(a)), activation))
        return Sum(Scaled(low, gamma), Scaled(columns, 1 - gamma))

    count = each(lambda out, into: rank * (out + into) + chosen(into) * out)
    return Factorization(Rewrite(rewrite), count)
