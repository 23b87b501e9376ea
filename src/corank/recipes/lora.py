"""W + s b a, and what papers put around it."""

from __future__ import annotations

import torch

from ..linalg import truncated_svd
from ..models import Site
from ..operators import (
    Dense,
    LowRank,
    Operator,
    Product,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import plus, zero_low_rank
from ..rewrites.adapting import kaiming, leaf_dtype, require_rank, zeros
from .counts import each, low_rank

ADAPTER = ("adapter", "preserves")


@method(
    Paper("LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685", "equation 3"),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=8, alpha=16.0: w + alpha / rank * p["b"] @ p["a"],
)
def lora(rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """W + (alpha / rank) b a with b zero at the start: the baseline of all the others."""
    return Adaptation(plus(zero_low_rank(rank), alpha / rank), low_rank(rank))


@method(
    Paper(
        "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        "2312.03732",
        "theorem 3.2 (number from memory): alpha / sqrt(r) in place of alpha / r",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=8, alpha=16.0: w + alpha / rank**0.5 * p["b"] @ p["a"],
)
def rslora(rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """LoRA scaled by alpha / sqrt(rank), so that large ranks learn as fast as small ones."""
    return Adaptation(plus(zero_low_rank(rank), alpha / rank**0.5), low_rank(rank))


@method(
    Paper(
        "Asymmetry in Low-Rank Adapters of Foundation Models",
        "2402.16842",
        "the authors' code: A random and frozen, B trained from zero; sections not read",
        "the orthonormal rows of A come from a QR decomposition of normal numbers, not from the "
        "singular vectors of uniform ones: the same kind of random subspace at less work",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=8, alpha=16.0: w + alpha / rank * p["b"] @ p["a"],
)
def lora_fa(rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """LoRA whose a is a frozen random orthonormal basis: only b trains, half the numbers."""

    def delta(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        out, into = op.shape
        drawn = torch.randn(into, rank, generator=site.draws(), dtype=torch.float64)
        a = torch.linalg.qr(drawn).Q.mT.contiguous()
        return LowRank(zeros(op, out, rank), a.to(op.device, leaf_dtype(op)))

    return Adaptation(
        plus(delta, alpha / rank),
        each(lambda out, into: rank * out),
        each(lambda out, into: rank * into),
    )


@method(
    Paper(
        "Mixture-of-Subspaces in Low-Rank Adaptation",
        "2406.11909",
        "equations 6 and 7 by the numbers of the authors' code, not re-read",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=16, alpha=32.0: w + alpha / rank * p["weight"] @ p["b"] @ p["a"],
)
def moslora(rank: int = 16, alpha: float = 32.0) -> Adaptation:
    """B M A with a mixer M, (rank, rank), trained beside LoRA's factors.

    M starts kaiming-uniform as A does, B at zero; the defaults are the commonsense runs'.
    """

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        out, into = op.shape
        a, mixer = kaiming(op, site, rank, into), kaiming(op, site, rank, rank)
        return Product(Dense(zeros(op, out, rank)), LowRank(mixer, a))

    count = each(lambda out, into: rank * (out + into + rank))
    return Adaptation(plus(delta, alpha / rank), count)


@method(
    Paper(
        "NoRA: Nested Low-Rank Adaptation for Efficient Fine-Tuning Large Models",
        "2408.10280",
        "the abstract: outer factors from the SVD of the weight, frozen, an inner pair trained",
        "the equations were not found: that the outer factors are U_r S_r^1/2 and S_r^1/2 V_r^T, "
        "that the inner pair starts as LoRA's does and is scaled by alpha / inner_rank, and both "
        "ranks, are this library's reading",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=64, inner_rank=8, alpha=16.0: (
        w + alpha / inner_rank * p["weight"] @ p["b"] @ p["a"] @ p["weight_1"]
    ),
)
def nora(rank: int = 64, inner_rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """A low-rank pair within a frozen one: U_r S_r^1/2 (b a) S_r^1/2 V_r^T, b zero at the start."""
    if not 1 <= inner_rank <= rank:
        raise ValueError(f"inner_rank must be in 1 to rank = {rank}, got {inner_rank}")

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        wide = op.dense().to(leaf_dtype(op))
        u, s, vh, _ = truncated_svd(wide, rank, generator=site.generator())
        root = s.sqrt()
        inner = LowRank(zeros(op, rank, inner_rank), kaiming(op, site, inner_rank, rank))
        return Product(Dense(u * root), inner, Dense(root[:, None] * vh))

    return Adaptation(
        plus(delta, alpha / inner_rank),
        each(lambda out, into: 2 * inner_rank * rank),
        low_rank(rank),
    )
