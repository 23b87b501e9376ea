"""Weights in few bits, and nothing beside them."""

from __future__ import annotations

from ..metrics import Measure, euclidean
from ..operators import Operator
from ..quantizers import Quantizer
from .factorwise import count_factorwise, factorwise
from .menu import Menu
from .rewrite import Counts, Family, Unit


def quantisation(quantizer: Quantizer, measure: Measure | None = None) -> Family:
    """W -> Q, or where W is a product of matrices, each of them in few bits: see `factorwise`.

    There is one size, 0; its error is in `measure` (default: the Frobenius norm).
    """
    measured = measure or euclidean()

    def build(unit: Unit, size: int) -> list[Operator]:
        return factorwise(quantizer, unit)

    def counts(unit: Unit, size: int) -> list[Counts]:
        return count_factorwise(quantizer, unit)

    def menu(unit: Unit) -> Menu:
        def errors() -> list[float]:
            return [sum(
                float(measured(site.stats).loss(op.dense().detach() - q.dense().detach()))
                for site, op, q in zip(unit.sites, unit.ops, build(unit, 0), strict=True)
            )]  # fmt: skip

        return Menu([0], [sum(b for _, b in counts(unit, 0))], errors)

    return Family(menu, build, counts, measured, quantizer.needs | measured.needs)
