"""Low-rank factors together with a sparse matrix whose support stays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models import Site
from ..operators import LowRank, Operator, Scaled, Sparse, Sum
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite, zero_low_rank
from ..rewrites.adapting import uniform
from .counts import each

FACTORIZATION = ("factorization",)


def random_support(op: Operator, site: Site, count: int) -> Tensor:
    """`count` places of the weight, (count,) ascending flat indices, each place as likely."""
    numel = op.shape[0] * op.shape[1]
    drawn = torch.randperm(numel, generator=site.draws())[:count].sort().values
    return (drawn.int() if numel <= 2**31 else drawn).to(op.device)


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
        out, into = op.shape
        index = random_support(op, site, chosen(out, into))
        values = uniform(op, site, len(index), bound=1 / math.sqrt(into))
        low: LowRank = zero_low_rank(rank)(op, site)
        return Sum(Scaled(low, alpha / rank), Sparse(values, index, op.shape))

    count = each(lambda out, into: rank * (out + into) + chosen(out, into))
    return Factorization(Rewrite(rewrite), count)
