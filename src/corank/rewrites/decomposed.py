"""A site's weight, taken apart in the dtype that its adapter is kept in."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..linalg import exact_svd, truncated_svd
from ..models import Site
from ..operators import Operator
from .adapting import leaf_dtype, require_rank


class Triples(NamedTuple):
    """Singular triples of a weight: u (out, r), s (r,) descending, vh (r, in)."""

    u: Tensor
    s: Tensor
    vh: Tensor


def wide(op: Operator) -> Tensor:
    """The weight as a matrix, in the dtype of an adapter's leaves."""
    return op.dense().detach().to(leaf_dtype(op))


def all_triples(op: Operator) -> Triples:
    """Every singular triple."""
    return Triples(*exact_svd(wide(op))[:3])


def leading(op: Operator, site: Site, rank: int) -> Triples:
    """The `rank` largest triples, by the cheaper algorithm."""
    require_rank(rank, site)
    return cut(Triples(*truncated_svd(wide(op), rank, generator=site.generator())[:3]), 0, rank)


def trailing(op: Operator, site: Site, rank: int) -> Triples:
    """The `rank` smallest triples."""
    require_rank(rank, site)
    whole = all_triples(op)
    side = whole.s.shape[0]
    return cut(whole, side - rank, side)


def cut(triples: Triples, start: int, stop: int) -> Triples:
    """Triples start to stop, in memory of their own."""
    u, s, vh = triples
    return Triples(u[:, start:stop].clone(), s[start:stop].clone(), vh[start:stop].clone())


def rooted(triples: Triples) -> tuple[Tensor, Tensor]:
    """b = u sqrt(s) and a = sqrt(s) vh, whose product the triples are."""
    root = triples.s.sqrt()
    return triples.u * root, root[:, None] * triples.vh
