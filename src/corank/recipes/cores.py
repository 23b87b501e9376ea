"""Adapters that train a small core between frozen factors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..models import Site
from ..operators import Dense, Operator, RowNormalised, normalise_rows
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, between, leading, plus
from ..rewrites.adapting import Delta, leaf_dtype, normal, trains
from .counts import each, low_rank, square


def _noisy_core(rank: int, alpha: float, std: float) -> Delta:
    """(alpha / rank) B R A, B A the best approximation of W, and R small normal numbers."""

    def delta(op: Operator, site: Site) -> Operator:
        u, s, vh = leading(op, site, rank)
        core = normal(op, site, rank, rank, std=std)
        return between(u, core, s[:, None] * vh, alpha / rank)

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
    return Adaptation(plus(_noisy_core(rank, alpha, std), 1.0), square(rank), low_rank(rank))


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
        return between(u, trains(s.diag()), vh)

    return Adaptation(plus(delta, needs=frozenset({"gradient"})), square(rank), low_rank(rank))


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
    """LoRA-XS on the directions of the rows of W, their lengths trained apart, as in DoRA.

    As there, the core starts as numbers of size `std`, so the start is very nearly W.
    """
    plain = plus(_noisy_core(rank, alpha, std))

    def rewrite(op: Operator, site: Site) -> Operator:
        lengths = normalise_rows(op).m.detach().to(leaf_dtype(op))
        return RowNormalised(plain(op, site), trains(lengths))

    return Adaptation(Rewrite(rewrite), each(lambda out, into: rank * rank + out), low_rank(rank))
