"""Weights that are products of block diagonal matrices, or of narrow ones, trained so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.fading import fade_out, faded
from ..errors import SiteError
from ..linalg import truncated_svd
from ..models import Site
from ..operators import (
    BlockDiagonal,
    Dense,
    LowRank,
    Operator,
    Product,
    Scaled,
    Sum,
    exchange,
    trainable,
)  # fmt: skip
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, normal, require_rank
from .counts import each

FACTORIZATION = ("factorization",)


def _even(size: int) -> tuple[int, int]:
    """Two factors, the smaller first, each prime of `size` given to the smaller one so far."""
    sides, prime = [1, 1], 2
    while size > 1:
        if size % prime:
            prime += 1
            continue
        sides[sides.index(min(sides))] *= prime
        size //= prime
    return min(sides), max(sides)


def _btt(w: Tensor, p: dict[str, Tensor], rank: int = 1, **_: Any) -> Tensor:
    left, right = p["blocks"], p["blocks_1"]  # (n0, n1, m1 r), (m1, n0 r, m0)
    n0, m1 = left.shape[0], right.shape[0]
    cores = left.unflatten(2, (m1, rank)), right.unflatten(1, (n0, rank))
    return torch.einsum("abcr,card->abcd", *cores).reshape(w.shape)


@method(
    Paper(
        "Compute Better Spent: Replacing Dense Layers with Structured Matrices",
        "2406.06248",
        "the authors' code: two cores, their start and their multipliers of the learning rate",
        "the rate given is that of the dense layer it replaces, so the factor for widening a base "
        "model is the caller's; the last layer of a residual block does not start at zero; the "
        "normalisation of the cores (btt_norm) is left out",
    ),
    area="train",
    laws=FACTORIZATION,
    equation=_btt,
)
def btt(rank: int = 1) -> Factorization:
    """Block tensor-train: two permuted block diagonal factors, scaled as muP asks.

    Both sides of a weight are split into two factors, as even as their primes allow. A core whose
    blocks have d inputs learns at in / (2 d) times the rate: use the controller's parameter_groups.
    rank: of the tensor train, at least 1.
    """

    def sizes(out: int, into: int) -> tuple[int, int, int, int]:
        return (*_even(out), *_even(into))

    def rewrite(op: Operator, site: Site) -> Operator:
        n0, n1, m0, m1 = sizes(*op.shape)
        if rank > min(n0 * m0, n1 * m1):
            raise SiteError(
                site.where,
                f"rank {rank} is above {min(n0 * m0, n1 * m1)}, where nothing is left to add",
                "Ask for a lower rank.",
            )
        right = BlockDiagonal(_spectral(op, site, m1, n0 * rank, m0))
        left = BlockDiagonal(_spectral(op, site, n0, n1, m1 * rank))
        return Product(left, exchange(m1, n0, rank), right)

    def count(out: int, into: int) -> int:
        n0, _, _, m1 = sizes(out, into)
        return rank * (into * n0 + out * m1)

    return Factorization(Rewrite(rewrite), each(count), controls=(Control(learning_rates=_rates),))


def _spectral(op: Operator, site: Site, blocks: int, out: int, into: int) -> Tensor:
    """Blocks of spectral norm about sqrt(out / in) or less, as muP wants a layer's."""
    return normal(op, site, blocks, out, into, std=into**-0.5 * min(1, math.sqrt(out / into)))


def _rates(training: Training) -> Mapping[str, float]:
    return {
        f"{site}/{name}": op.shape[1] / leaf.shape[2] / 2
        for site, op in training.operators.items()
        for name, leaf in op.named_parameters()
    }


@method(
    Paper(
        "Investigating Low-Rank Training in Transformer Language Models: Efficiency and Scaling "
        "Analysis",
        "2407.09835",
        "the authors' code: the three layers, their starts, and the guide with its cosine",
        "the guide starts as the very product, also of the shuffled blocks, where the code leaves "
        "the shuffle out; a step never skips the guide at random; once it has faded out it is "
        "dropped",
    ),
    area="train",
    laws=(*FACTORIZATION, "changes_shape"),
)
def structured_ffn(
    kind: Literal["low_rank", "block_dense", "block_shuffle"] = "low_rank",
    rank: int = 256,
    blocks: int = 4,
    guided: float = 0.5,
) -> Factorization:
    """A low-rank, block-dense or block-shuffle weight, guided by a dense one that fades out.

    Made for feed-forward layers (targets="mlp"). `rank`: the inner width of the first two kinds;
    `blocks`: of the last two. `guided`: the share of the planned steps, 0 to 1, over which
    ratio * dense + (1 - ratio) * structured goes from ratio 1 to 0 by a cosine; 0 for no guide.
    """
    if kind not in ("low_rank", "block_dense", "block_shuffle"):
        raise ValueError(f"kind={kind!r} is none of low_rank, block_dense, block_shuffle")
    if blocks < 1 or not 0 <= guided <= 1:
        raise ValueError(f"blocks={blocks}, guided={guided}: at least 1, and within [0, 1]")

    def rewrite(op: Operator, site: Site) -> Operator:
        if kind == "block_shuffle":
            made = _block_shuffle(op, site, blocks)
        else:
            require_rank(rank, site)
            low = _low_rank(op, site, rank)
            made = low if kind == "low_rank" else _block_dense(op, site, rank, blocks)
        if not guided:
            return trainable(made)
        return trainable(Sum(Scaled(made, 0.0), Scaled(Dense(made.dense().detach()), 1.0)))

    def count(out: int, into: int) -> int:
        guide = out * into if guided else 0
        if kind == "block_shuffle":
            return guide + min(out, into) * (out + into) // blocks
        return guide + rank * (out + (into if kind == "low_rank" else into // blocks))

    control = Control(start=lambda training: fade_out(training, guided),
                      resume=faded,
                      after_step=lambda training: fade_out(training, guided))  # fmt: skip
    return Factorization(Rewrite(rewrite), each(count), controls=(control,) if guided else ())


def _low_rank(op: Operator, site: Site, rank: int) -> Operator:
    drawn = normal(op, site, *op.shape, std=op.shape[1] ** -0.5).detach()
    u, s, vh, _ = truncated_svd(drawn, rank, generator=site.generator())
    return LowRank(u * s.sqrt(), s.sqrt()[:, None] * vh)


def _block_dense(op: Operator, site: Site, rank: int, blocks: int) -> Operator:
    _require_divides(site, blocks, rank, op.shape[1])
    narrow = BlockDiagonal(_orthogonal(op, site, blocks, rank // blocks, op.shape[1] // blocks))
    return Product(Dense(_orthogonal(op, site, 1, op.shape[0], rank)[0]), narrow)


def _block_shuffle(op: Operator, site: Site, blocks: int) -> Operator:
    _require_divides(site, blocks, *op.shape)
    out, into = op.shape[0] // blocks, op.shape[1] // blocks
    inner = min(out, into)
    right = BlockDiagonal(_orthogonal(op, site, blocks, inner, into))
    left = BlockDiagonal(_orthogonal(op, site, blocks, out, inner))
    return Product(exchange(blocks, out), left, exchange(inner, blocks), right)


def _require_divides(site: Site, blocks: int, *sides: int) -> None:
    for side in sides:
        if side % blocks:
            raise SiteError(
                site.where, f"{blocks} blocks do not divide {side}",
                "Give a number of blocks that divides the sides and the rank.",
            )  # fmt: skip


def _orthogonal(op: Operator, site: Site, blocks: int, out: int, into: int) -> Tensor:
    """Blocks with orthonormal columns or rows, whichever are fewer."""
    drawn = torch.randn(blocks, out, into, generator=site.draws(), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(drawn, full_matrices=False)
    return (u @ vh).to(op.device, leaf_dtype(op))
