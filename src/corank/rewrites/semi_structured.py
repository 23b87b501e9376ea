"""2:4 sparse matrices, with what makes good for their zeros around them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import n_of_m, wrapped_sparse
from ..metrics import activation_scale
from ..operators import BlockDiagonal, Operator, Product, thin
from ..operators.packing import packed_width
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: What an input's size counts: its second moment.
SQUARES = activation_scale(1.0, of="rms")


def wrapped(block: int, steps: int) -> Family:
    """W -> L S R, with S 2:4 sparse and L, R block diagonal of blocks of side `block`.

    Fitted by `linalg.wrapped_sparse` to W with columns and rows of unit length, whose scales go to
    L and R. There is one size, 0, where it stores less than W.
    """
    build, counts = partial(_build, block, steps), partial(_counts, block)

    def menu(unit: Unit) -> Menu:
        _require_fit(block, unit)
        cost, dense = counts(unit, 0)[0][1], unit.bytes
        if cost >= dense:
            return Menu([None], [dense], lambda: [0.0])

        def errors() -> list[float]:
            change = unit.ops[0].dense().detach() - build(unit, 0)[0].dense()
            return [float(SQUARES(unit.sites[0].stats).loss(change)), 0.0]

        return Menu([0, None], [cost, dense], errors)

    return Family(menu, build, counts, SQUARES, SQUARES.needs)


def _build(block: int, steps: int, unit: Unit, size: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    _require_fit(block, unit)
    weight, weights = wide(op), SQUARES(site.stats).right
    assert weights is not None
    columns = _lengths(weight, 0)
    rows = _lengths(weight / columns, 1)
    left, core, right = wrapped_sparse(
        weight / columns / rows, weights, block, steps, generator=site.generator()
    )
    left = left * rows.view(-1, block, 1)
    right = right * columns.view(-1, 1, block)
    kept = n_of_m(core.abs(), 2, 4)
    return [Product(
        BlockDiagonal(left.to(op.dtype)), thin(core.to(op.dtype), kept, 4),
        BlockDiagonal(right.to(op.dtype)),
    )]  # fmt: skip


def _lengths(weight: Tensor, axis: int) -> Tensor:
    found = weight.norm(dim=axis, keepdim=True)
    return torch.where(found > 0, found, torch.ones_like(found))


def _counts(block: int, unit: Unit, size: int | None) -> list[Counts]:
    (op,) = unit.ops
    if size is None:
        return [(op.numel(), op.bytes())]
    out, into = op.shape
    numel = out * into // 2 + block * (out + into)
    return [(numel, numel * op.dtype.itemsize + out * packed_width(into // 2, 2))]


def _require_fit(block: int, unit: Unit) -> None:
    (site,), (op,) = unit.sites, unit.ops
    if op.shape[1] % 4:
        problem = f"its width, {op.shape[1]}, is no multiple of 4"
    elif any(side % block for side in op.shape):
        problem = f"its sides do not divide into blocks of {block}"
    elif site.kind == "embedding":
        problem = "an embedding reads no inputs that could be weighed"
    else:
        return
    raise SiteError(site.where, problem, "Give another block, or leave it out of the targets")
