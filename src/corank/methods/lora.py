"""W + s b a, and what papers put around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..operators import normalise_rows
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus, zero_low_rank
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
        "theorem 3.2: alpha / sqrt(r) in place of alpha / r",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=8, alpha=16.0: w + alpha / rank**0.5 * p["b"] @ p["a"],
)
def rslora(rank: int = 8, alpha: float = 16.0) -> Adaptation:
    """LoRA scaled by alpha / sqrt(rank), so that large ranks learn as fast as small ones."""
    return Adaptation(plus(zero_low_rank(rank), alpha / rank**0.5), low_rank(rank))


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
