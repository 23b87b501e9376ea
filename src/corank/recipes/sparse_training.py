"""Sparse weights trained from the start."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..control import lazy
from ..errors import SiteError
from ..linalg import n_of_m
from ..models import Site
from ..operators import (
    Activated,
    DoublePruned,
    LowRank,
    Operator,
    Product,
    Scaled,
    Sparse,
    Sum,
    sparsify,
)
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import kaiming, normal, require_rank, trains, uniform, zeros
from ..rewrites.decomposed import wide
from .counts import each
from .sparse_plus_low_rank import random_values

FACTORIZATION = ("factorization",)
Form = Literal["wide", "parallel", "factorized", "doped"]


def _slope(w: Tensor, p: dict[str, Tensor], rank: int = 16, **_: object) -> Tensor:
    flat = torch.zeros_like(w).flatten().index_put((p["index"].long(),), p["values"])
    return flat.view_as(w) + p["b"] @ p["a"] / rank


@method(
    Paper(
        "SLoPe: Double-Pruned Sparse Plus Lazy Low-Rank Adapter Pretraining of LLMs",
        "2405.16325",
        "the abstract and the authors' code (slope/slope.py)",
        "the products are dense ones over zeros, so memory is saved and time is not; the support "
        "is stored as 32 bits per value; the adapters stand from the start, at zero and without a "
        "gradient, and start to train late; their rank is ours; a width that m does not divide is "
        "refused; those over 5 times as long as wide, left dense by the code, are pruned too",
    ),
    area="train",
    laws=FACTORIZATION,
    equation=_slope,
)
def slope(rank: int = 16, n: int = 2, m: int = 4, share: float = 0.01) -> Factorization:
    """The n largest of every m weights in a row, and at the end of the training an adapter.

    Inputs get their gradient through those weights that are among the n largest of m in a column
    as well. The adapter b a / rank trains in the last `share` (over 0, to 1) of the steps.
    """
    if not (1 <= n < m and 0 < share <= 1):
        raise ValueError(f"n={n} must be from 1 to under m={m}, and share={share} over 0, to 1")

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        if op.shape[0] % m or op.shape[1] % m:
            raise SiteError(
                site.where, f"{n} of every {m} does not fit its rows and columns",
                "Leave it out of the targets, or choose another m.",
            )  # fmt: skip
        w = wide(op)
        kept = n_of_m(w.abs(), n, m)
        again = n_of_m((w * kept).abs().mT, n, m).mT
        pruned = sparsify(w, kept)
        sparse = Sparse(trains(pruned.values.detach()), pruned.index, op.shape)
        out, into = op.shape
        low = LowRank(zeros(op, out, rank), normal(op, site, rank, into))
        return Sum(DoublePruned(sparse, again[kept]), Scaled(low, 1 / rank))

    count = each(lambda out, into: out * into // m * n + rank * (out + into))
    return Factorization(Rewrite(rewrite), count, controls=(lazy(("a", "b"), share),))


@method(
    Paper(
        "Sparse Iso-FLOP Transformations for Maximizing Training Efficiency",
        "2303.11525",
        "the authors' code for ResNets (cifar_resnet18.py) and the abstract",
        "supports are random and stay, as in the code's static configurations, where RigL's moving "
        "ones are reported to be better; values start uniform within 1 / sqrt(the fan-in left); "
        "the factors have no batch norm or activation between them, as in the code's default; "
        "parallel branches end in an activation without a batch norm, and share one bias after it",
    ),
    area="train",
    laws=FACTORIZATION,
)
def sparse_ift(
    form: Form = "factorized", sparsity: float = 0.75, activation: str = "relu"
) -> Factorization:
    """Sparse weights, as many or wide as to do what one dense weight costs.

    form: "factorized", b a with an inner width that makes up for the sparsity; "doped", a sparse
    weight and factors for what it lacks; "parallel", 1 / (1 - sparsity) sparse branches, each
    behind `activation` ("gelu", "relu", "silu", "tanh") and so no matrix; or "wide", the sparse
    weight alone, for a model built with all widths 1 / sqrt(1 - sparsity) times as wide.
    sparsity: the share of zeros, over 0 and under 1.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity={sparsity} must be over 0 and under 1")
    if form not in ("wide", "parallel", "factorized", "doped"):
        raise ValueError(f"form={form!r} is none of wide, parallel, factorized and doped")
    density = 1 - sparsity
    branches = max(1, int(1 / density + 1e-9))

    def kept(out: int, into: int) -> int:
        return max(1, int(density * out * into))

    def inner(out: int, into: int) -> int:
        if form == "doped":
            return max(1, int(sparsity * out * into / (out + into)))
        return math.ceil(out * into / (density * (out + into)))

    def sparse(op: Operator, site: Site, out: int, into: int) -> Sparse:
        drawn = random_values(op, site, (out, into), kept(out, into))
        drawn.values.data /= math.sqrt(density)
        return drawn

    def rewrite(op: Operator, site: Site) -> Operator:
        out, into = op.shape
        if form == "wide":
            return sparse(op, site, out, into)
        if form == "parallel":
            return Sum(*(Activated(sparse(op, site, out, into), activation)
                         for _ in range(branches)))  # fmt: skip
        width = inner(out, into)
        if form == "factorized":
            return Product(sparse(op, site, out, width), sparse(op, site, width, into))
        b = uniform(op, site, out, width, bound=1 / math.sqrt(width))
        return Sum(sparse(op, site, out, into), LowRank(b, kaiming(op, site, width, into)))

    def numbers(out: int, into: int) -> int:
        if form == "wide":
            return kept(out, into)
        if form == "parallel":
            return branches * kept(out, into)
        width = inner(out, into)
        if form == "factorized":
            return kept(out, width) + kept(width, into)
        return kept(out, into) + width * (out + into)

    return Factorization(Rewrite(rewrite), each(numbers))
