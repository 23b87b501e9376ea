"""A coarse matrix and a low-rank one beside it that repairs it."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import Dense, Operator
from ..quantizers import Quantizer
from .factorwise import count_factorwise, factorwise
from .layout import is_narrowed
from .menu import Menu, menu_of_ranks
from .rewrite import Counts, Family, Unit


def compensation(
    first: Quantizer, second: Family, rounds: int = 1, repair_first: bool = False
) -> Family:
    """W -> Q + L, where Q quantises W and L, of the rank asked for, repairs W - Q.

    In further `rounds` Q quantises W - L, and L repairs anew; the best of the pairs in the measure
    of `second` is kept. `repair_first`: L is fitted to W before Q is to W - L, in every round. Rank
    0 is Q alone. Where a site has an original beside its operator, the operator is what an earlier
    rewrite made of it, so it stays as Q, and W is the original's. Where W is a product of matrices,
    Q quantises each of them (see `factorwise`), and there is one round of this and then L.

    The errors of the menu are those of the first round.
    """
    return Family(
        menu=partial(_menu, first, second),
        build=partial(_build, first, second, rounds, repair_first),
        counts=partial(_counts, first, second),
        measure=second.measure,
        needs=first.needs | second.needs,
    )


def _split(first: Quantizer, unit: Unit) -> tuple[list[Operator], Unit]:
    """Q of each site, and W - Q."""
    coarse = []
    for site, op in zip(unit.sites, unit.ops, strict=True):
        coarse.append(op if _is_repaired_only(site) else factorwise(first, Unit([site], [op]))[0])
    return coarse, _less(unit, coarse)


def _require_comparable(unit: Unit) -> None:
    """Refuse to repair by itself what makes sense together with another weight only."""
    for site, op in zip(unit.sites, unit.ops, strict=True):
        if _is_repaired_only(site) and is_narrowed(op):
            raise SiteError(
                site.where,
                "it lost inner dimensions together with another weight, and repairing it alone "
                "would undo what the other gained",
                "Leave it out of the targets, or give heal_minutes= instead of a repair",
            )


def _wanted(unit: Unit) -> list[Tensor]:
    return [op.dense().detach() for op in _originals(unit).ops]


def _originals(unit: Unit) -> Unit:
    """What is to be approximated: the operators before an earlier rewrite, where there was one."""
    pairs = zip(unit.sites, unit.ops, strict=True)
    return Unit(unit.sites, [s.pool.get("originals", {}).get(s.name, op) for s, op in pairs])


def _is_repaired_only(site: Site) -> bool:
    return site.name in site.pool.get("originals", {})


def _less(unit: Unit, ops: list[Operator]) -> Unit:
    """W less those operators."""
    left = [w - op.dense().detach().to(w) for w, op in zip(_wanted(unit), ops, strict=True)]
    return Unit(unit.sites, [Dense(w) for w in left])


def _counts(first: Quantizer, second: Family, unit: Unit, size: int) -> list[Counts]:
    found = []
    for site, op, beside in zip(unit.sites, unit.ops, second.counts(unit, size), strict=True):
        repaired_only = _is_repaired_only(site)
        alone = Unit([site], [op])
        own = (op.numel(), op.bytes()) if repaired_only else count_factorwise(first, alone)[0]
        found.append((own[0] + beside[0], own[1] + beside[1]))
    return found


def _menu(first: Quantizer, second: Family, unit: Unit) -> Menu:
    ranks = [0, *(size for size in second.menu(_originals(unit)).sizes if isinstance(size, int))]
    costs = [sum(b for _, b in _counts(first, second, unit, r)) for r in ranks]

    def spectrum() -> Tensor:
        return second.menu(_split(first, unit)[1]).spectrum

    return menu_of_ranks(ranks, costs, spectrum)


def _build(
    first: Quantizer, second: Family, rounds: int, repair_first: bool, unit: Unit, size: int
) -> list[Operator]:
    _require_comparable(unit)
    if size == 0:
        return _split(first, unit)[0]
    if not all(isinstance(op, Dense) for op in unit.ops):
        rounds, repair_first = 1, False  # W - L is no product any more
    coarse: list[Operator] = []
    if repair_first:
        lost = Unit(unit.sites, [Dense(w) for w in _wanted(unit)])
    else:
        coarse, lost = _split(first, unit)
    least, best = math.inf, coarse
    for i in range(rounds):
        repairs = second.build(lost, size)
        if repair_first:
            coarse, lost = _around(first, unit, repairs)
        pairs: list[Operator] = [q + low for q, low in zip(coarse, repairs, strict=True)]
        if rounds == 1:
            return pairs
        if (loss := _loss(second, _less(unit, pairs))) < least:
            least, best = loss, pairs
        if not repair_first and i + 1 < rounds:
            coarse, lost = _around(first, unit, repairs)
    return best


def _around(first: Quantizer, unit: Unit, repairs: list[Operator]) -> tuple[list[Operator], Unit]:
    """Q of W - L, and W - Q."""
    rest = _less(unit, repairs)
    coarse = [first(op.dense(), site) for site, op in zip(rest.sites, rest.ops, strict=True)]
    return coarse, _less(unit, coarse)


def _loss(second: Family, error: Unit) -> float:
    return sum(
        float(second.of(site).measure(site.stats).loss(op.dense()))
        for site, op in zip(error.sites, error.ops, strict=True)
    )
