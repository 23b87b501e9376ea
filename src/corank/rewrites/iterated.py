"""A matrix as a sum of signs times low-rank magnitudes, each fitted to what those before left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from math import prod

import torch

from ..errors import SiteError
from ..linalg import balance, truncated_svd
from ..operators import Hadamard, LowRank, Operator, Refined, Signs, settle
from ..operators.packing import packed_width
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit


def iterated_signs(rank: int, most: int) -> Family:
    """W -> sum over i of sign(R_i) * (b_i a_i), b_i a_i the nearest of `rank` to |R_i|.

    R_0 is W, and R_(i+1) what term i leaves of R_i. The size is how many terms there are, 1 to
    `most`, as far as they store less than W does. The rank is an eighth of the weight's smaller
    side where that is less. What is built knows its squared errors: `engine.cutting` drops terms.
    """
    return Family(partial(_menu, rank, most), partial(_build, rank), partial(_counts, rank))


def _rank(rank: int, op: Operator) -> int:
    return min(rank, max(1, min(op.shape) // 8))


def _build(rank: int, unit: Unit, size: int) -> list[Operator]:
    if size < 1:
        raise SiteError(unit.name, f"{size} terms are less than 1", "Ask for more")
    terms, errors = zip(*islice(_terms(rank, unit), size), strict=True)
    return [Refined(*terms, errors=errors)]


def _terms(rank: int, unit: Unit) -> Iterator[tuple[Operator, float]]:
    """Term after term, each with the squared error that the sum up to it leaves."""
    (site,), (op,) = unit.sites, unit.ops
    rest = wide(op)
    generator = site.generator()
    while True:
        u, s, vh, _ = truncated_svd(rest.abs(), _rank(rank, op), generator=generator)
        b, a = balance(u * s, vh, op.dtype)
        signs = settle(Signs(rest.to(op.dtype), torch.ones(len(rest)).to(rest).to(op.dtype)))
        term = Hadamard(signs, LowRank(b.contiguous(), a.contiguous()))
        rest = rest - term.dense().to(rest)
        yield term, float(rest.square().sum())


def _counts(rank: int, unit: Unit, size: int | None) -> list[Counts]:
    (op,) = unit.ops
    if size is None:
        return [(op.numel(), op.bytes())]
    out, into = op.shape
    values = _rank(rank, op) * (out + into) + out + 2  # factors, a scale a row, the two levels
    each = out * packed_width(into, 1) + values * op.dtype.itemsize
    return [(size * (prod(op.shape) + values), size * each)]


def _menu(rank: int, most: int, unit: Unit) -> Menu:
    costs = {n: _counts(rank, unit, n)[0][1] for n in range(1, most + 1)}
    paying = [n for n, cost in costs.items() if cost < unit.bytes]

    if not paying:
        return Menu([None], [unit.bytes], lambda: [0.0])

    def errors() -> list[float]:
        return [error for _, error in islice(_terms(rank, unit), len(paying))]

    return Menu(paying, [costs[n] for n in paying], errors)
