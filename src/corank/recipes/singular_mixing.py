"""Adapters that mix a weight's singular vectors with one another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import Dense, Diagonal, Entrywise, LowRank, Operator, Product, Sparse, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, Triples, all_triples, cut, plus
from ..rewrites.adapting import kaiming, ones, require_rank, trains, zeros
from .counts import each

_PATTERNS = ("plain", "banded", "random", "top_k")


def _svft(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    if "gate" in p:
        return w + p["b"] @ p["gate"].diag() @ p["a"]
    k = p["weight"].shape[1]
    m = torch.zeros(k * k, dtype=w.dtype).index_put((p["index"].long(),), p["values"])
    return w + p["weight"] @ m.view(k, k) @ p["weight_1"]


@method(
    Paper(
        "SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors",
        "2405.19597",
        "section 3.1, equation 1, and its four patterns",
        "the thin decomposition, as in the authors' code, in place of the full one; M starts at "
        "zero, where the code draws it and multiplies it by a trained gate; random positions are "
        "distinct, which the code's are not; top_k takes the largest absolute alignments, which do "
        "not depend on the signs of the vectors, and compares the coordinates that u and v have in "
        "common where the weight is not square, for which the paper defines none",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_svft,
)
def svft(pattern: str = "banded", off_diagonal: int = 2, rank: int | None = None) -> Adaptation:
    """W + U M V.T with M trained at fixed places among all pairs of singular vectors.

    pattern: "plain" the diagonal; "banded" up to `off_diagonal` places beside it; "random" as
    many places, drawn; "top_k" as many, where u_i and v_j are most aligned. rank: only the largest
    `rank` singular triples; None takes all.
    """
    if pattern not in _PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(_PATTERNS)}, got {pattern!r}")
    if off_diagonal < 0:
        raise ValueError(f"off_diagonal must be at least 0, got {off_diagonal}")
    band = 0 if pattern == "plain" else off_diagonal

    def delta(op: Operator, site: Site) -> Operator:
        triples = all_triples(op)
        if rank is not None:
            require_rank(rank, site)
            triples = cut(triples, 0, rank)
        k = triples.s.shape[0]
        if band >= k:
            raise SiteError(
                site.where, f"off_diagonal {band} is outside its 0 to {k - 1}", "Lower it."
            )
        if pattern == "plain":
            return LowRank(triples.u, triples.vh, zeros(op, k))
        index = _places(pattern, band, triples, site)
        middle = Sparse(zeros(op, index.shape[0]), index.int(), (k, k))
        return Product(Dense(triples.u), middle, Dense(triples.vh))

    def side(out: int, into: int) -> int:
        return min(out, into) if rank is None else rank

    return Adaptation(
        plus(delta),
        each(lambda m, n: _in_band(side(m, n), band)),
        each(lambda m, n: side(m, n) * (m + n)),
    )


def _in_band(k: int, band: int) -> int:
    return k * (2 * band + 1) - band * (band + 1)


def _places(pattern: str, band: int, triples: Triples, site: Site) -> Tensor:
    """Flat indices into M, ascending."""
    u, s, vh = triples
    k = s.shape[0]
    count = _in_band(k, band)
    if pattern == "banded":
        i = torch.arange(k, device=u.device)
        return ((i[:, None] - i).abs() <= band).flatten().nonzero().squeeze(1)
    if pattern == "random":
        drawn = torch.randperm(k * k, generator=site.draws())[:count]
        return drawn.sort().values.to(u.device)
    common = min(u.shape[0], vh.shape[1])
    alignment = (u[:common].mT @ vh[:, :common].mT).abs()  # (k, k): |<u_i, v_j>|
    return alignment.flatten().topk(count).indices.sort().values


def _salt(w: Tensor, p: dict[str, Tensor], rectify: bool = True, **_: object) -> Tensor:
    top = (p["diagonal"] * p["diagonal_1"] + p["diagonal_2"]).diag()
    rest = p["diagonal_3"].diag() + p["b"] @ p["a"]
    if rectify:
        top, rest = top.relu(), rest.relu()
    return p["weight"] @ top @ p["weight_1"] + p["weight_2"] @ rest @ p["weight_3"]


@method(
    Paper(
        "SALT: Singular Value Adaptation with Low-Rank Transformation",
        "2503.16055",
        "the layer, as in the authors' code; the paper's equations were not read",
        "the code's penalty, weighted 0 in its settings, is left out",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_salt,
)
def salt(rank: int = 8, ratio: float = 0.1, rectify: bool = True) -> Adaptation:
    """The top singular values are scaled and shifted, the rest gets a low-rank update.

    ratio: share of the singular values at the top. rectify: entries of the new middle matrix that
    are negative become zero, those off the diagonal too, as in the authors' code; False keeps them
    and is cheaper.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be in (0, 1), got {ratio}")

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        whole = all_triples(op)
        side = whole.s.shape[0]
        top, rest = cut(whole, 0, _top(side, ratio)), cut(whole, _top(side, ratio), side)
        left = side - _top(side, ratio)
        if rank > left:
            raise SiteError(
                site.where,
                f"rank {rank} is more than the {left} singular values under the top",
                "Lower rank= or ratio=.",
            )
        scaled = Product(Diagonal(top.s), Diagonal(ones(op, top.s.shape[0])))
        upper: Operator = Sum(scaled, Diagonal(zeros(op, top.s.shape[0])))
        start = kaiming(op, site, left, rank).detach() * 6**0.5  # He's bound, sqrt(6 / rank)
        low = LowRank(trains(start), zeros(op, rank, left))
        lower: Operator = Sum(Diagonal(rest.s), low)
        if rectify:
            upper, lower = (Entrywise(part, "relu") for part in (upper, lower))
        return Sum(
            Product(Dense(top.u), upper, Dense(top.vh)),
            Product(Dense(rest.u), lower, Dense(rest.vh)),
        )

    def count(out: int, into: int) -> int:
        side = min(out, into)
        return 2 * _top(side, ratio) + 2 * rank * (side - _top(side, ratio))

    return Adaptation(Rewrite(rewrite), each(count), each(lambda m, n: min(m, n) * (m + n + 1)))


def _top(side: int, ratio: float) -> int:
    return max(1, int(side * ratio))
