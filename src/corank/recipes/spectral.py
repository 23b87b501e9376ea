"""Adapters whose factors start as parts of the weight itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import Cayley, Dense, Diagonal, LowRank, Operator, Product, Scaled, Sum
from ..operators import transpose as transposed
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, Triples, all_triples, cut, leading, rooted, split, trailing, wide
from ..rewrites.adapting import require_rank, trains, zeros
from .counts import each, low_rank

ADAPTER = ("adapter", "preserves")
_BESIDE = "the residual W - b0 a0 is not stored: b0 a0 is, frozen, so that W stays what it is"


def _swapped(w: Tensor, p: dict[str, Tensor], rank: int = 8) -> Tensor:
    return w - p["b"] @ p["a"] + p["b_1"] @ p["a_1"]


def _rooted(triples: Triples) -> LowRank:
    b, a = rooted(triples)
    return LowRank(trains(b), trains(a))


@method(
    Paper(
        "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
        "2404.02948",
        "equations 2 to 4 (numbers from memory)",
        _BESIDE,
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_swapped,
)
def pissa(rank: int = 8) -> Adaptation:
    """The leading singular triples of W train, the rest stays frozen."""
    start = split(lambda op, site: _rooted(leading(op, site, rank)))
    return Adaptation(start, low_rank(rank), low_rank(rank))


@method(
    Paper(
        "MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM Finetuning",
        "2406.09044",
        "the initialisation, as in the authors' code; the paper's text was not read",
        f"{_BESIDE}; a weight whose smallest singular values are all zero is refused",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_swapped,
)
def milora(rank: int = 8) -> Adaptation:
    """The smallest singular triples of W train, what is principal stays frozen."""

    def minor(op: Operator, site: Site) -> LowRank:
        start = _rooted(trailing(op, site, rank))
        scale = float(torch.linalg.vector_norm(wide(op)))
        if float(start.b.abs().max()) ** 2 <= torch.finfo(start.dtype).eps * scale:
            raise SiteError(
                site.where,
                f"its {rank} smallest singular values are zero, so that nothing there could train",
                "Ask for a larger rank, or leave the site out.",
            )
        return start

    return Adaptation(split(minor), low_rank(rank), low_rank(rank))


@method(
    Paper(
        "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models",
        "2406.01775",
        "the QR initialisation, as in PEFT; the paper's text was not read",
        _BESIDE,
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_swapped,
)
def olora(rank: int = 8) -> Adaptation:
    """The first columns of Q and rows of R train, of W = Q R."""

    def orthonormal(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        q, r = torch.linalg.qr(wide(op))
        return LowRank(trains(q[:, :rank].clone()), trains(r[:rank].clone()))

    return Adaptation(split(orthonormal), low_rank(rank), low_rank(rank))


def _spectral(w: Tensor, p: dict[str, Tensor], form: str = "additive", **_: object) -> Tensor:
    if form == "rotational":
        eye = torch.eye(len(p["diagonal"]), dtype=w.dtype)
        skews = [(p[name][0] - p[name][0].mT) / 2 for name in ("blocks", "blocks_1")]
        left, right = ((eye - q) @ (eye + q).inverse() for q in skews)
        turned = left @ p["diagonal"].diag() @ right.mT
        return w + p["weight"] @ (turned - p["diagonal"].diag()) @ p["weight_1"]
    return w - p["b"] @ p["gate"].diag() @ p["a"] + p["b_1"] @ p["gate"].diag() @ p["a_1"]


@method(
    Paper(
        "Spectral Adapter: Fine-Tuning in Spectral Space",
        "2405.13952",
        "both forms, as in the authors' code; the paper's equations were not read",
        "the shifted vectors train and not the shifts, the same but for weight decay; the "
        "rotational form has no trained factor on the singular values, as the authors' code has",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_spectral,
)
def spectral_adapter(rank: int = 8, form: str = "additive", first: int = 0) -> Adaptation:
    """The singular vectors of W themselves train, their singular values fixed.

    form: "additive" lets the vectors move freely, "rotational" turns them among themselves by two
    (rank, rank) rotations. first: index of the first of the `rank` triples, 0 being the largest;
    adapters on disjoint triples can be added to one another.
    """
    if form not in ("additive", "rotational"):
        raise ValueError(f"form must be 'additive' or 'rotational', got {form!r}")

    def triples(op: Operator, site: Site) -> Triples:
        if first == 0:
            return leading(op, site, rank)
        require_rank(rank, site)
        if not 0 <= first <= min(site.shape) - rank:
            raise SiteError(
                site.where,
                f"triples {first} to {first + rank} are not among its {min(site.shape)}",
                "Lower first= or rank=.",
            )
        return cut(all_triples(op), first, first + rank)

    def additive(op: Operator, site: Site) -> LowRank:
        u, s, vh = triples(op, site)
        return LowRank(trains(u), trains(vh), s)

    def rotational(op: Operator, site: Site) -> Operator:
        u, s, vh = triples(op, site)
        values = Diagonal(s)
        left, right = (Cayley(zeros(op, 1, rank, rank)) for _ in range(2))
        turned = Product(left, values, transposed(right))
        return Sum(op, Product(Dense(u), Sum(turned, Scaled(values, -1.0)), Dense(vh)))

    held = each(lambda out, into: rank * (out + into + 1))
    if form == "additive":
        return Adaptation(split(additive), low_rank(rank), held)
    return Adaptation(Rewrite(rotational), each(lambda out, into: 2 * rank * rank), held)
