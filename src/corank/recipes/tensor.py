"""Adapters that read the weight as a tensor of several modes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import bond_sizes
from ..models import Site
from ..operators import (
    Dense,
    Hadamard,
    Kron,
    LowRank,
    Operator,
    Product,
    Sum,
    TensorTrain,
    normal_float,
    quantise_codebook,
    transpose,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus, split, train_cores
from ..rewrites.adapting import kaiming, leaf_dtype, normal, require_rank, trains, zeros
from ..rewrites.factoring import digits
from .counts import each

ADAPTER = ("adapter", "preserves")


def _fedpara(w: Tensor, p: dict[str, Tensor], rank: int = 8, alpha: float = 8.0) -> Tensor:
    return w + alpha / rank * (p["b"] @ p["a"]) * (p["b_1"] @ p["a_1"])


@method(
    Paper(
        "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
        "2108.06098",
        "proposition 1 (number from memory), for a change of the weight as in LoHa (2309.14859); "
        "start of PEFT",
        "the paper parametrises the whole weight; convolutions are taken as matrices "
        "(proposition 1, not 3)",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_fedpara,
)
def fedpara(rank: int = 8, alpha: float = 8.0) -> Adaptation:
    """LoHa: W + (alpha / rank) (b1 a1) * (b2 a2), elementwise, of rank up to rank^2; a2 is zero."""

    def delta(op: Operator, site: Site) -> Hadamard:
        require_rank(rank, site)
        out, into = op.shape
        one = LowRank(kaiming(op, site, out, rank), kaiming(op, site, rank, into))
        return Hadamard(one, LowRank(kaiming(op, site, out, rank), zeros(op, rank, into)))

    return Adaptation(plus(delta, alpha / rank), each(lambda out, into: 2 * rank * (out + into)))


def _lotr(w: Tensor, p: dict[str, Tensor], rank: int = 8, scale: float = 1.0) -> Tensor:
    return w + scale / rank * p["weight"] @ p["weight_1"] @ p["weight_2"].T


@method(
    Paper(
        "LoTR: Low Tensor Rank Weight Adaptation",
        "2402.01376",
        "Tucker-2 form and default start as in the authors' code (sections not read)",
        "sites of one shape share the outer factors, whatever their role",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_lotr,
)
def lotr(rank: int = 8, scale: float = 1.0) -> Adaptation:
    """W + (scale / rank) u g v.T with u and v trained and shared by all sites of one shape.

    g is the site's own, zero at the start; u and v are standard normal.
    """

    def delta(op: Operator, site: Site) -> Product:
        require_rank(rank, site)
        key = f"lotr {op.shape}"
        if key not in site.pool:
            site.pool[key] = [normal(op, site, side, rank) for side in op.shape]
        u, v = site.pool[key]
        return Product(Dense(u), Dense(zeros(op, rank, rank)), transpose(Dense(v)))

    def count(sites: Sequence[Site]) -> int:
        outer = sum(rank * (out + into) for out, into in {site.shape for site in sites})
        return outer + rank * rank * len(sites)

    return Adaptation(plus(delta, scale / rank), count)


def _flora(w: Tensor, p: dict[str, Tensor], scale: float = 4.0, **_: Any) -> Tensor:
    return w + scale * p["weight"] @ p["weight_1"] @ p["weight_2"].T


@method(
    Paper(
        "FLoRA: Low-Rank Core Space for N-dimension",
        "2405.14739",
        "the Tucker form, start and scale as in the authors' code (section 3 not re-read)",
        "one rank for all modes is cut to the size of each mode",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_flora,
)
def flora_tucker(
    rank: int = 16, scale: float = 4.0, ranks: Sequence[int] | None = None
) -> Adaptation:
    """W + scale times a Tucker tensor in the weight's own shape: a core and a factor for each mode.

    The core is zero at the start. rank: of every mode, at most its size; ranks: one for each of
    (out, in, *kernel) in its place.
    """

    def modes(site: Site) -> list[tuple[int, int]]:
        sizes = site.modes
        own = [min(rank, size) for size in sizes] if ranks is None else list(ranks)
        if len(own) != len(sizes) or any(r < 1 for r in own):
            raise SiteError(
                site.where,
                f"ranks {own} do not fit a weight of {len(sizes)} modes",
                "Give one rank for each of (out, in, *kernel), or a single rank for all.",
            )
        return list(zip(sizes, own, strict=True))

    def delta(op: Operator, site: Site) -> Product:
        factors: list[Operator] = [
            Dense(normal(op, site, size, r, std=(0.5 / r) ** 0.5)) for size, r in modes(site)
        ]
        first, *others = factors
        core = Dense(zeros(op, first.shape[1], prod(f.shape[1] for f in others)))
        right = reduce(Kron, others)
        return Product(first, core, transpose(right))

    def count(sites: Sequence[Site]) -> int:
        return sum(
            sum(size * r for size, r in modes(site)) + prod(r for _, r in modes(site))
            for site in sites
        )

    return Adaptation(plus(delta, scale), count)


def _dota(w: Tensor, p: dict[str, Tensor], order: int = 3, **_: Any) -> Tensor:
    rows, columns = digits(w.shape[0], order), digits(w.shape[1], order)

    def matrix(first: int) -> Tensor:
        total: Any = torch.ones(1, 1, 1, dtype=w.dtype)
        for k in range(order):
            name = f"weight_{first + k}" if first + k else "weight"
            left = total.shape[2]
            core = p[name].reshape(left, rows[k], columns[k], -1)
            joined = torch.einsum("abx,xijy->aibjy", total, core)
            total = joined.reshape(
                total.shape[0] * rows[k], total.shape[1] * columns[k], core.shape[3]
            )
        return total[:, :, 0]

    return w - matrix(0) + matrix(order)


@method(
    Paper(
        "DoTA: Weight-Decomposed Tensor Adaptation for Large Language Models",
        "2412.20891",
        "abstract, and two third parties' summaries: W_res = W - MPO(W) stays frozen, in NF4 for "
        "QDoTA (sections not read)",
        "number of modes, their sizes and the bond size are ours, and the singular values go into "
        "the core on the right; the residual W - P0 is not stored unless quantised, P0 is",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_dota,
)
def dota(rank: int = 8, order: int = 3, quantised: int | None = None) -> Adaptation:
    """The truncated tensor train of W trains, the rest stays frozen.

    rank: of every bond. order: how many digits rows and columns are read in. quantised: 4 keeps
    the frozen rest in NF4 (QDoTA), which changes the function by its rounding.
    """
    if quantised not in (None, 4):
        raise ValueError(f"quantised={quantised}: None, or 4 bits")
    if order < 2 or rank < 1:
        raise ValueError(f"order={order}, rank={rank}: at least 2 modes and a bond of 1")

    def train(op: Operator, site: Site) -> TensorTrain:
        rows, columns = digits(op.shape[0], order), digits(op.shape[1], order)
        cores = train_cores(op, site, rank, rows, columns)
        return TensorTrain(*(Dense(trains(core)) for core in cores), rows=rows, columns=columns)

    def quantise(op: Operator, site: Site) -> Operator:
        start = train(op, site)
        rest = op.dense().to(leaf_dtype(op)) - start.dense()
        return Sum(quantise_codebook(rest, normal_float(4)), start)

    def trained(out: int, into: int) -> int:
        modes = [i * j for i, j in zip(digits(out, order), digits(into, order), strict=True)]
        sizes = bond_sizes(modes, rank)
        return sum(a * n * b for a, n, b in zip(sizes, modes, sizes[1:], strict=False))

    def packed(out: int, into: int) -> int:
        return out * into + out * -(-into // 64) + 16  # codes, scales and levels

    if quantised:
        return Adaptation(Rewrite(quantise), each(trained), each(packed))
    return Adaptation(split(train), each(trained), each(trained))
