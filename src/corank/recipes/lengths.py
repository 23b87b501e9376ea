"""W + s b a as directions and lengths, trained apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models import Site
from ..operators import (
    FrobeniusNormalised,
    LowRank,
    Operator,
    Sum,
    normalise_columns,
    normalise_rows,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus, zero_low_rank
from ..rewrites.adapting import kaiming, leaf_dtype, require_rank, trains, zeros
from .counts import each

ADAPTER = ("adapter", "preserves")


def _dora(w: Tensor, p: dict[str, Tensor], rank: int = 8, alpha: float = 16.0) -> Tensor:
    v: Any = w + alpha / rank * p["b"] @ p["a"]
    return p["m"][:, None] * v / v.norm(dim=1, keepdim=True).detach()


@method(
    Paper(
        "DoRA: Weight-Decomposed Low-Rank Adaptation",
        "2402.09353",
        "equation 5, the norm a constant in the backward pass (section 4.3)",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_dora,
)
def dora(rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """The rows of W + (alpha / rank) b a as directions, their lengths trained apart."""
    plain = plus(zero_low_rank(rank), alpha / rank)

    def rewrite(op: Any, site: Any) -> Any:
        rows = normalise_rows(plain(op, site))
        rows.m.requires_grad_(True)
        return rows

    return Adaptation(Rewrite(rewrite), each(lambda out, into: rank * (out + into) + out))


@method(
    Paper(
        "MAP: Revisiting Weight Decomposition for Low-Rank Adaptation",
        "2505.23094",
        "the decomposition as a review of the paper gives it; equations not read",
        "the start is not in the sources: beta is 0 and both factors are random, so that the "
        "function is exactly the pre-trained one and no norm of a zero matrix is divided by; the "
        "norms are differentiated through",
    ),
    area="adapt",
    key="map",
    laws=ADAPTER,
    equation=lambda w, p, rank=8: (
        p["m"] * w / w.norm() + p["m_1"] * p["b"] @ p["a"] / (p["b"] @ p["a"]).norm()
    ),
)
def map_(rank: int = 8) -> Adaptation:
    """alpha W / |W| + beta (b a) / |b a|: two directions in Frobenius norm, their lengths trained.

    alpha starts at |W|, beta at 0.
    """

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        out, into = op.shape
        low = LowRank(kaiming(op, site, out, rank), kaiming(op, site, rank, into))
        wide = op.dense().to(leaf_dtype(op))
        alpha = trains(torch.linalg.matrix_norm(wide).reshape(1))
        return Sum(FrobeniusNormalised(op, alpha), FrobeniusNormalised(low, zeros(op, 1)))

    return Adaptation(Rewrite(rewrite), each(lambda out, into: rank * (out + into) + 2))


def _bora(w: Tensor, p: dict[str, Tensor], rank: int = 8, alpha: float = 16.0) -> Tensor:
    v: Any = w + alpha / rank * p["b"] @ p["a"]
    h = p["m_1"][:, None] * v / v.norm(dim=1, keepdim=True).detach()
    bent: Tensor = p["m"] * h / h.norm(dim=0).detach()
    return bent


@method(
    Paper(
        "BoRA: Bi-dimensional Weight-Decomposed Low-Rank Adaptation",
        "2412.06441",
        "the two normalisations as another's description gives them; equations not read",
        "both norms are constants in the backward pass, as DoRA's; rank and alpha are LoRA's "
        "defaults, the authors' were not found",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_bora,
)
def bora(rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """DoRA on both sides: rows, then columns, of W + (alpha / rank) b a with lengths of their own.

    Both lengths start as W's, so the function is exactly the pre-trained one.
    """
    plain = plus(zero_low_rank(rank), alpha / rank)

    def rewrite(op: Any, site: Any) -> Any:
        rows = normalise_rows(plain(op, site))
        columns = normalise_columns(rows)
        rows.m.requires_grad_(True)
        columns.m.requires_grad_(True)
        return columns

    count = each(lambda out, into: (rank + 1) * (out + into))
    return Adaptation(Rewrite(rewrite), count)
