"""Adapters of structured matrices, whose rank nothing restricts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import Circulant, Cycle, Dense, Kron, Operator, Product, Sum, Toeplitz, transpose
from ..registry import Adaptation, Paper, method
from ..rewrites import plus
from ..rewrites.adapting import kaiming, normal, zeros
from .counts import each

ADAPTER = ("adapter", "preserves")


def _surm(
    w: Tensor, p: dict[str, Tensor], kind: str = "circulant", rank: int = 1, scale: float = 1.0
) -> Tensor:
    place = torch.arange(max(w.shape))
    lag = place[:, None] - place
    sign = 1 - 2 * (lag < 0).to(w.dtype)
    whole: Any
    if kind == "kronecker":
        whole = torch.kron(p["weight"], p["weight_1"])
    elif kind == "circulant":
        whole = (p["gate"] * p["column"])[lag]
    elif kind == "toeplitz":
        whole = p["column"][lag.abs()] @ p["column_1"][lag.abs()]
    else:
        columns = [c[lag] for name, c in p.items() if name.startswith("column")]
        pairs = zip(columns[::2], columns[1::2], strict=True)
        whole = sum(g @ (sign * h) for g, h in pairs)
    return w + scale * whole[: w.shape[0], : w.shape[1]]


def _circulant(op: Operator, site: Site, side: int) -> Operator:
    return Circulant(zeros(op, side), normal(op, site, side))


def _toeplitz(op: Operator, site: Site, side: int) -> Operator:
    return Product(Toeplitz(zeros(op, side)), Toeplitz(normal(op, site, side, std=0.02)))


@method(
    Paper(
        "Structured Unrestricted-Rank Matrices for Parameter Efficient Fine-tuning",
        "2406.17740",
        "the layers of the authors' code; sections not read",
        "a weight that is not square gets the upper left part of an update of its larger side, "
        "where the code refuses it; the skew-circulant's root is exp(i pi / d), where the code "
        "takes one for d + 1; the structured bottleneck adapter is left out",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_surm,
)
def surm(kind: str = "circulant", rank: int = 1, scale: float = 1.0) -> Adaptation:
    """An update that is structured and not of low rank, multiplied through the Fourier transform.

    kind: "circulant", C(b * a); "toeplitz", T(b) T(a), both symmetric; "ldr", Toeplitz-like of
    displacement rank `rank`, sum of C(g_i) S(h_i) with S skew-circulant; "kronecker", b (x) a with
    a (rank, in / rank). b and g are zero at the start. 2 d numbers train for the larger side d
    (times rank for "ldr"), in + out for "kronecker" at every rank.
    """
    kinds = ("circulant", "toeplitz", "ldr", "kronecker")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")

    def square(op: Operator, site: Site, side: int) -> Operator:
        if kind != "ldr":
            return (_circulant if kind == "circulant" else _toeplitz)(op, site, side)
        skewed = [Circulant(normal(op, site, side, std=0.02), skew=True) for _ in range(rank)]
        return Sum(*(Product(Circulant(zeros(op, side)), skew) for skew in skewed))

    def delta(op: Operator, site: Site) -> Operator:
        out, into = op.shape
        if kind == "kronecker":
            return _kronecker(op, site, rank)
        side = max(out, into)
        whole = square(op, site, side)
        if out < side:
            return Product(Cycle((out, side)), whole)
        return Product(whole, transpose(Cycle((into, side)))) if into < side else whole

    def count(out: int, into: int) -> int:
        if kind == "kronecker":
            return out + into
        return 2 * max(out, into) * (rank if kind == "ldr" else 1)

    return Adaptation(plus(delta, scale), each(count))


def _kronecker(op: Operator, site: Site, rank: int) -> Operator:
    out, into = op.shape
    if out % rank or into % rank:
        raise SiteError(
            site.where,
            f"rank = {rank} divides not both sides",
            "Ask for a rank that does, or give this target one of its own.",
        )
    a = kaiming(op, site, rank, into // rank)
    return Kron(Dense(zeros(op, out // rank, rank)), Dense(a))
