"""Blocks of columns as sparse combinations of a small dense basis each."""

from __future__ import annotations

from functools import partial

import torch

from ..errors import SiteError
from ..linalg import learned_dictionary
from ..metrics import euclidean
from ..operators import BlockDiagonal, Dense, Operator, Product, Thinned, place_bits
from ..operators.packing import packed_width
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers.
STEPS = 16


def dense_sparse(block: int, rows_per_nonzero: float, rounds: int) -> Family:
    """W -> S D: `block` columns of W at a time are sparse combinations of r rows, for a size of r.

    D is block diagonal, and S has r / `rows_per_nonzero` numbers in every r neighbours of a row.
    Each block's rows are the best of `rounds` of K-SVD in the Frobenius norm. S trains straight
    through what it leaves out, and settles as sparse.
    """
    build = partial(_build, block, rows_per_nonzero, rounds)
    counts = partial(_counts, block, rows_per_nonzero)

    def menu(unit: Unit) -> Menu:
        most = _require_fit(block, unit)
        sizes = sorted({max(1, round(most * i / STEPS)) for i in range(1, STEPS + 1)})
        return menu_by_building(unit, sizes, counts, build, error_in(euclidean()))

    return Family(menu, build, counts)


def _nonzeros(rows_per_nonzero: float, rows: int) -> int:
    return max(1, round(rows / rows_per_nonzero))


def _build(
    block: int, rows_per_nonzero: float, rounds: int, unit: Unit, rows: int
) -> list[Operator]:
    most = _require_fit(block, unit)
    if not 1 <= rows <= most:
        raise SiteError(
            unit.name, f"a basis of {rows} rows is outside 1 to {most}, a block's smaller side",
            "Ask for a size in that range",
        )  # fmt: skip
    (op,) = unit.ops
    kept = _nonzeros(rows_per_nonzero, rows)
    fitted = [learned_dictionary(part, rows, kept, rounds) for part in wide(op).split(block, 1)]
    codes = torch.cat([s for s, _ in fitted], 1).to(op.dtype)
    basis = BlockDiagonal(torch.stack([d for _, d in fitted]).to(op.dtype))
    return [Product(Dense(codes) if kept == rows else Thinned(codes, kept, rows), basis)]


def _counts(block: int, rows_per_nonzero: float, unit: Unit, rows: int | None) -> list[Counts]:
    (op,) = unit.ops
    if rows is None:
        return [(op.numel(), op.bytes())]
    out, into = op.shape
    kept = _nonzeros(rows_per_nonzero, rows)
    in_row = into // block * kept
    numel = out * in_row + rows * into
    places = 0 if kept == rows else out * packed_width(in_row, place_bits(rows))
    return [(numel, numel * op.dtype.itemsize + places)]


def _require_fit(block: int, unit: Unit) -> int:
    """The largest basis."""
    (site,), (op,) = unit.sites, unit.ops
    if op.shape[1] % block:
        raise SiteError(
            site.where, f"its width, {op.shape[1]}, does not divide into blocks of {block}",
            "Give another block, or leave it out of the targets",
        )  # fmt: skip
    return min(block, op.shape[0], 256)
