"""Adapters that start from, or move within, the singular vectors of the weight."""

from __future__ import annotations

from ..linalg import truncated_svd
from ..models import Site
from ..operators import LowRank, Operator
from ..registry import Adaptation, Paper, method
from ..rewrites import split
from ..rewrites.adapting import leaf_dtype, require_rank, trains
from .counts import low_rank

ADAPTER = ("adapter", "preserves")


@method(
    Paper(
        "PiSSA: Principal Singular Values and Singular Vectors Adaptation",
        "2404.02948",
        "equations 2 to 4",
        "the residual W - b0 a0 is not stored: b0 a0 is, frozen, so that W stays what it is",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=8: w - p["b"] @ p["a"] + p["b_1"] @ p["a_1"],
)
def pissa(rank: int = 8) -> Adaptation:
    """The leading singular triples of W train, the rest stays frozen."""

    def principal(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        dtype = leaf_dtype(op)
        u, s, vh, _ = truncated_svd(op.dense().to(dtype), rank, generator=site.generator())
        root = s.sqrt()
        return LowRank(trains(u * root), trains(root[:, None] * vh))

    return Adaptation(split(principal), low_rank(rank), low_rank(rank))
