"""A matrix with most of its numbers left out, wherever they are."""

from __future__ import annotations

from ..errors import SiteError
from ..linalg import sparsify_spectrum
from ..metrics import euclidean
from ..operators import Operator, smallest_sparse
from ..operators.bitmap import bitmap_is_smaller, place_bytes
from ..operators.packing import packed_width
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers.
STEPS = 32


def sparsification() -> Family:
    """W -> a sparse matrix near in the spectral norm; the size is how many numbers it holds.

    By `linalg.sparsify_spectrum`. Stored with a bit for each place or an index for each number,
    whichever is smaller. Errors of the menu are found by building, in the Frobenius norm.
    """

    def menu(unit: Unit) -> Menu:
        places = unit.ops[0].shape[0] * unit.ops[0].shape[1]
        sizes = sorted({max(1, places * i // STEPS) for i in range(1, STEPS + 1)})
        return menu_by_building(unit, sizes, _counts, _build, error_in(euclidean()))

    return Family(menu, _build, _counts)


def _build(unit: Unit, count: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    weight = wide(op)
    if not 1 <= count <= weight.numel():
        raise SiteError(
            unit.name, f"{count} numbers are outside 1 to {weight.numel()}", "Ask for so many"
        )
    made = sparsify_spectrum(weight, count, site.generator())
    kept = made.flatten().abs().argsort(descending=True, stable=True)[:count]
    mask = made.new_zeros(made.numel()).bool().scatter(0, kept, True).view_as(made)
    return [smallest_sparse(made.to(op.dtype), mask)]


def _counts(unit: Unit, count: int | None) -> list[Counts]:
    (op,) = unit.ops
    if count is None:
        return [(op.numel(), op.bytes())]
    places = op.shape[0] * op.shape[1]
    bitmap = bitmap_is_smaller(count, places)
    index = packed_width(places, 1) if bitmap else count * place_bytes(places)
    return [(count, count * op.dtype.itemsize + index)]
