"""Adapters made of Kronecker products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..linalg import truncated_svd
from ..models import Site
from ..operators import Dense, Kron, KronSum, LowRank, Operator
from ..registry import Adaptation, Paper, method
from ..rewrites import plus, split
from ..rewrites.adapting import kaiming, leaf_dtype, trains, zeros
from ..rewrites.factoring import factor_pair
from .counts import each

ADAPTER = ("adapter", "preserves")


def _lokr(w: Tensor, p: dict[str, Tensor], rank: int = 8, alpha: float = 8.0, **_: Any) -> Tensor:
    whole = [p[name] for name in ("weight", "weight_1") if name in p]
    products = [p[b] @ p[a] for b, a in (("b", "a"), ("b_1", "a_1")) if b in p]
    small, large = [*whole, *products]  # the smaller one is factored only if the larger one is
    return w + alpha / rank * torch.kron(small, large)


@method(
    Paper(
        "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
        "2309.14859",
        "LoKr; sizes, start and scale as in PEFT",
        "convolutions are taken as matrices",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_lokr,
)
def lokr(
    rank: int = 8,
    alpha: float = 8.0,
    decompose_factor: int = -1,
    decompose_both: bool = False,
) -> Adaptation:
    """W + (alpha / rank) w1 (x) w2: the larger factor of that rank, the smaller one zero at first.

    decompose_factor: the smaller size of each side's two factors; -1: as even as they divide.
    A factor is stored whole where `rank` is at least half its larger side; the smaller one always,
    unless decompose_both.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: at least 1")

    def sizes(out: int, into: int) -> tuple[tuple[int, int], tuple[int, int]]:
        (a, b), (c, d) = factor_pair(out, decompose_factor), factor_pair(into, decompose_factor)
        return (a, c), (b, d)

    def factored(shape: tuple[int, int]) -> bool:
        return 2 * rank < max(shape)

    def delta(op: Operator, site: Site) -> Kron:
        def factor(shape: tuple[int, int], low: bool, zero: bool) -> Operator:
            rows, columns = shape
            if not low:
                return Dense(zeros(op, *shape) if zero else kaiming(op, site, *shape))
            b = zeros(op, rows, rank) if zero else kaiming(op, site, rows, rank)
            return LowRank(b, kaiming(op, site, rank, columns))

        small, large = sizes(*op.shape)
        left = factor(small, decompose_both and factored(small), True)
        return Kron(left, factor(large, factored(large), False))

    def count(out: int, into: int) -> int:
        small, large = sizes(out, into)
        ends = [(small, decompose_both and factored(small)), (large, factored(large))]
        return sum(rank * sum(shape) if low else shape[0] * shape[1] for shape, low in ends)

    return Adaptation(plus(delta, alpha / rank), each(count))


def _soka(w: Tensor, p: dict[str, Tensor], **_: Any) -> Tensor:
    def total(left: Tensor, right: Tensor) -> Any:
        return sum(torch.kron(a, b) for a, b in zip(left, right, strict=True))

    return w - total(p["p"], p["q"]) + total(p["p_1"], p["q_1"])


@method(
    Paper(
        "Singular Value Decomposition on Kronecker Adaptation for Large Language Model",
        "2506.15251",
        "algorithm 1 (KPSVD) as a third party describes it",
        "block sizes as even as the sides divide; the least rank that keeps `energy` or reaches "
        "the elbow of the spectrum (farthest from its chord), up to `rank`; singular values by "
        "their roots into both factors; the residual W - P0 is not stored, P0 is",
    ),
    area="adapt",
    laws=(*ADAPTER, "chooses"),
    equation=_soka,
)
def soka(rank: int = 32, energy: float = 0.9) -> Adaptation:
    """The leading Kronecker products of W train, as many as its spectrum asks for.

    rank: the most there may be at a site.
    """
    if rank < 1 or not 0 < energy <= 1:
        raise ValueError(f"rank={rank}, energy={energy}: at least 1, and within (0, 1]")

    def principal(op: Operator, site: Site) -> KronSum:
        (m, p), (n, q) = factor_pair(op.shape[0]), factor_pair(op.shape[1])
        w = op.dense().to(leaf_dtype(op)).view(m, p, n, q)
        blocks = w.permute(0, 2, 1, 3).reshape(m * n, p * q)  # one row for each p x q block
        most = min(rank, *blocks.shape)
        u, s, vh, _ = truncated_svd(blocks, most, generator=site.generator())
        kept = min(_kept(s, float(blocks.square().sum()), energy), _elbow(s))
        root = s[:kept].sqrt()[:, None]
        left, right = root * u[:, :kept].mT, root * vh[:kept]
        return KronSum(trains(left.view(kept, m, n)), trains(right.reshape(kept, p, q)))

    def count(sites: Sequence[Site]) -> int:
        total = 0
        for site in sites:
            (m, p), (n, q) = factor_pair(site.shape[0]), factor_pair(site.shape[1])
            total += min(rank, m * n, p * q) * (m * n + p * q)
        return total

    return Adaptation(split(principal), count, count)


def _kept(s: Tensor, total: float, energy: float) -> int:
    """The least rank that keeps the share `energy` of `total`, or all there are."""
    enough = s.square().cumsum(0) >= energy * total
    return int(enough.nonzero()[0]) + 1 if bool(enough.any()) else len(s)


def _elbow(s: Tensor) -> int:
    """How many values come before the spectrum's farthest point below its chord."""
    steps = torch.arange(len(s), dtype=s.dtype, device=s.device) / max(len(s) - 1, 1)
    chord = s[0] + (s[-1] - s[0]) * steps
    return max(int((chord - s).argmax()), 1)
