"""A truncated SVD in few bits: the larger the singular value, the more bits its vectors get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ..metrics import euclidean
from ..operators import Operator, Product, Sum, Transpose
from ..quantizers import Quantizer
from .decomposed import leading, rooted
from .factorwise import behind
from .menu import Menu, menu_of_ranks
from .rewrite import Counts, Family, Unit
from .truncation import truncation

#: How to quantise a factor in so many bits.
Quantise = Callable[[int], Quantizer]


def banded(bits: Sequence[int], vectors: Sequence[int], right: Quantise, left: Quantise) -> Family:
    """W -> sum over bands of B' A': the leading singular triples of W, in bands, as B A = W.

    The first `vectors[0]` triples are stored in `bits[0]` bits, the next `vectors[1]` in
    `bits[1]`, ..., all others in the last of `bits`. In a band A' is what `right` makes of A, a
    row for each triple, and B'^T what `left` makes of B^T with the statistics of A' x. That B is
    quantised as its transpose lets a group share a singular vector, as narrow as a band may be. The
    size is the rank.

    The errors of the menu are those of the truncation; what the bits lose is not in them. Raises
    ValueError unless there is one more of `bits` than of `vectors`.
    """
    if len(bits) != len(vectors) + 1 or any(count < 1 for count in vectors):
        raise ValueError(
            f"bits={list(bits)}, vectors={list(vectors)}: say for all bits but the last how many "
            "singular vectors, at least 1, get them"
        )
    quantisers = [(right(b), left(b)) for b in bits]
    cut = partial(_bands, vectors)
    return Family(
        menu=partial(_menu, cut, quantisers), build=partial(_build, cut, quantisers),
        counts=partial(_counts, cut, quantisers), measure=euclidean(), needs=quantisers[0][0].needs,
    )  # fmt: skip


Pairs = Sequence[tuple[Quantizer, Quantizer]]
Cut = Callable[[int], Iterator[tuple[int, int]]]


def _bands(vectors: Sequence[int], rank: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each band of a rank that is not empty."""
    start = 0
    for count in (*vectors, rank):
        stop = min(start + count, rank)
        if stop > start:
            yield start, stop
        start = stop


def _build(cut: Cut, quantisers: Pairs, unit: Unit, rank: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    b, a = rooted(leading(op, site, rank))
    columns, rows = b.mT.to(op.dtype).contiguous(), a.to(op.dtype).contiguous()
    terms = []
    for (start, stop), (right, left) in zip(cut(rank), quantisers, strict=False):
        inner = right(rows[start:stop], site)
        between = replace(site, stats=behind(inner, site.stats))
        terms.append(Product(Transpose(left(columns[start:stop], between)), inner))
    return [Sum(*terms) if len(terms) > 1 else terms[0]]


def _counts(cut: Cut, quantisers: Pairs, unit: Unit, rank: int | None) -> list[Counts]:
    (op,) = unit.ops
    if rank is None:
        return [(op.numel(), op.bytes())]
    counts = [
        quantiser.counts((stop - start, side), op.dtype)
        for (start, stop), pair in zip(cut(rank), quantisers, strict=False)
        for quantiser, side in zip(pair, (op.shape[1], op.shape[0]), strict=True)
    ]
    return [(sum(numel for numel, _ in counts), sum(bytes_ for _, bytes_ in counts))]


def _menu(cut: Cut, quantisers: Pairs, unit: Unit) -> Menu:
    costs = {
        rank: _counts(cut, quantisers, unit, rank)[0][1]
        for rank in range(1, min(unit.ops[0].shape) + 1)
    }
    paying = [rank for rank, cost in costs.items() if cost < unit.bytes]
    plain = truncation(euclidean())
    return menu_of_ranks(
        [*paying, None], [*(costs[rank] for rank in paying), unit.bytes],
        lambda: plain.menu(unit).spectrum,
    )  # fmt: skip
