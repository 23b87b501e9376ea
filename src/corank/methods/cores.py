"""Adapters that train a small core between frozen factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..linalg import ldu as factor_ldu
from ..linalg import pivoted_columns
from ..models import Site
from ..operators import (
    Dense,
    Diagonal,
    Kron,
    LowRank,
    Operator,
    Product,
    RowNormalised,
    Scaled,
    Sum,
    normalise_rows,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, leading, plus, wide
from ..rewrites.adapting import Delta, leaf_dtype, normal, require_rank, trains, zeros
from .counts import each, low_rank


def _square(rank: int) -> Callable[[int, int], int]:
    return lambda out, into: rank * rank


def _between(b: Tensor, core: Tensor, a: Tensor, scale: float = 1.0) -> Operator:
    """scale * b core a, the core trainable."""
    left = LowRank(b, core)
    return Product(left if scale == 1 else Scaled(left, scale), Dense(a))


def _noisy_core(rank: int, alpha: float, std: float) -> Delta:
    """(alpha / rank) B R A, B A the best approximation of W, and R small normal numbers."""

    def delta(op: Operator, site: Site) -> Operator:
        u, s, vh = leading(op, site, rank)
        core = normal(op, site, rank, rank, std=std)
        return _between(u, core, s[:, None] * vh, alpha / rank)

    return delta


def _xs(
    w: Tensor, p: dict[str, Tensor], rank: int = 16, alpha: float = 16.0, std: float = 1e-5
) -> Tensor:
    return w + alpha / rank * p["b"] @ p["a"] @ p["weight"]


@method(
    Paper(
        "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
        "2405.17604",
        "the parameterisation and its initialisation, as in the authors' code; the paper's "
        "equations were not read",
        "the decomposition is this library's, not scikit-learn's randomised one",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_xs,
)
def lora_xs(rank: int = 16, alpha: float = 16.0, std: float = 1e-5) -> Adaptation:
    """W + (alpha / rank) B R A, with B and A frozen singular vectors and R trained.

    A carries the singular values. R starts as normal numbers of size `std`, so the start is very
    nearly W, and is W for std = 0.
    """
    return Adaptation(plus(_noisy_core(rank, alpha, std), 1.0), each(_square(rank)), low_rank(rank))


def _sb(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    return w + p["b"] @ p["a"] @ p["weight"]


@method(
    Paper(
        "Initialization using Update Approximation is a Silver Bullet for Extremely Efficient "
        "Low-Rank Fine-Tuning",
        "2411.19557",
        "the initialisation from the first update, as in the authors' code; the paper's equations "
        "were not read",
        "no alpha: the authors' code sets alpha = rank",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_sb,
)
def lora_sb(rank: int = 96, learning_rate: float = 1e-5) -> Adaptation:
    """W + B R A, started at the best approximation of the first step of full fine-tuning.

    That step is -learning_rate * sign(mean gradient), the first of AdamW; give the rate of the
    first step, after warm-up's factor. B and A are its singular vectors, frozen; R starts as its
    singular values and trains, so the start is not W.
    """

    def delta(op: Operator, site: Site) -> Operator:
        step = -learning_rate * site.stat("gradient").to(op.device, leaf_dtype(op)).sign()
        u, s, vh = leading(Dense(step), site, rank)
        return _between(u, trains(s.diag()), vh)

    return Adaptation(
        plus(delta, needs=frozenset({"gradient"})), each(_square(rank)), low_rank(rank)
    )


def _edora(
    w: Tensor, p: dict[str, Tensor], rank: int = 16, alpha: float = 16.0, std: float = 1e-5
) -> Tensor:
    v: Any = _xs(w, p, rank, alpha)
    return p["m"][:, None] * v / v.norm(dim=1, keepdim=True).detach()


@method(
    Paper(
        "EDoRA: Efficient Weight-Decomposed Low-Rank Adaptation via Singular Value Decomposition",
        "2501.12067",
        "the parameterisation and its initialisation, as in the authors' code; the paper's "
        "equations were not read",
        "the decomposition is this library's, not scikit-learn's randomised one",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_edora,
)
def edora(rank: int = 16, alpha: float = 16.0, std: float = 1e-5) -> Adaptation:
    """LoRA-XS on the directions of the rows of W, their lengths trained apart, as in DoRA."""
    plain = plus(_noisy_core(rank, alpha, std))

    def rewrite(op: Operator, site: Site) -> Operator:
        lengths = normalise_rows(op).m.detach().to(leaf_dtype(op))
        return RowNormalised(plain(op, site), trains(lengths))

    return Adaptation(Rewrite(rewrite), each(lambda out, into: rank * rank + out), low_rank(rank))


def _pmss(w: Tensor, p: dict[str, Tensor], rank: int = 64, scale: float = 1.0) -> Tensor:
    return w + scale * p["b"] @ p["a"] @ p["weight"]


@method(
    Paper(
        "PMSS: Pretrained Matrices Skeleton Selection for LLM Fine-tuning",
        "2409.16722",
        "the abstract's form; the paper's body and code were not found",
        "how the skeleton is selected is not known from what was read: columns and rows are "
        "chosen by pivoted QR, as usual for skeletons; the scale and the zero start are choices",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_pmss,
)
def pmss(rank: int = 64, scale: float = 1.0) -> Adaptation:
    """W + scale * C M R with C columns and R rows of W itself, frozen, and M trained from zero."""

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        w = wide(op)
        columns = w[:, pivoted_columns(w, rank)]
        rows = w[pivoted_columns(w.mT, rank)]
        return _between(columns, zeros(op, rank, rank), rows, scale)

    return Adaptation(plus(delta), each(_square(rank)), low_rank(rank))


def _loldu(w: Tensor, p: dict[str, Tensor], rank: int = 4, alpha: float = 1.0) -> Tensor:
    values = p["weight_1"] * p["diagonal"] - alpha / rank * p["diagonal_1"]
    return w + p["weight"] @ values.flatten().diag() @ p["weight_2"]


@method(
    Paper(
        "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient "
        "Fine-Tuning",
        "2410.13618",
        "the parameterisation started at the weight, as in the authors' code; the paper's "
        "equations were not read",
        "of the code's starts only the exact one; a zero pivot, by which the code divides, is left "
        "in the triangle; the frozen start is held beside W in place of a residual",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_loldu,
)
def loldu(rank: int = 4, alpha: float = 1.0) -> Adaptation:
    """The leading diagonal entries of W = P L D U and a factor on them train.

    W - (alpha / rank) P L D0 U + c P L diag(d) U, over the first `rank` columns of L and rows of
    U; d starts at D0 and the factor c at alpha / rank.
    """

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        lower, d, upper = factor_ldu(wide(op))
        start = d[:rank].clone()
        factor = Dense(trains(start.new_full((1, 1), alpha / rank)))
        moving = Kron(factor, Diagonal(trains(start.clone())))  # a trained number times a diagonal
        return Product(
            Dense(lower[:, :rank].clone()),
            Sum(moving, Scaled(Diagonal(start), -alpha / rank)),
            Dense(upper[:rank].clone()),
        )

    return Adaptation(
        plus(delta),
        each(lambda out, into: rank + 1),
        each(lambda out, into: rank * (out + into + 1)),
    )
