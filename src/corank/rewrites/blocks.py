"""A matrix cut into a grid of blocks, each of low rank, with factors of its own or shared."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import shared_blocks
from ..metrics import euclidean
from ..operators import BlockDiagonal, Operator, Product, exchange
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu, menu_of_ranks
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers whose errors are found by building.
STEPS = 16


def block_truncation(blocks: int) -> Family:
    """W -> L P R, L and R block diagonal with `blocks` blocks and P a permutation between them.

    Of the `blocks` x `blocks` grid that W is cut into, each part becomes the nearest one of rank r:
    the nearest such matrix in the Frobenius norm. Stores r * blocks * (out + in) numbers.
    """
    return Family(partial(_menu, blocks), partial(_build, blocks), partial(_counts, blocks))


def shared_truncation(blocks: int, steps: int) -> Family:
    """W -> blocks U_i diag(s_ij) V_j^T of rank r, U_i shared along a row and V_j along a column.

    Stored as L P S P' R: three block diagonal matrices with permutations between, of
    r (out + in + blocks^2) numbers. Found by `linalg.shared_blocks`; errors by building.
    """
    build = partial(_build_shared, blocks, steps)
    counts = partial(_count_shared, blocks)

    def menu(unit: Unit) -> Menu:
        most = _require_blocks(blocks, unit) * blocks
        sizes = sorted({max(1, round(most * i / STEPS)) for i in range(1, STEPS + 1)})
        return menu_by_building(unit, sizes, counts, build, error_in(euclidean()))

    return Family(menu, build, counts)


def _build_shared(blocks: int, steps: int, unit: Unit, rank: int) -> list[Operator]:
    _require_blocks(blocks, unit)
    if rank < 1:
        raise SiteError(unit.name, f"rank {rank} is less than 1", "Ask for a higher one")
    generator = unit.sites[0].generator()
    u, s, v = shared_blocks(_parts(blocks, unit), rank, steps, generator)
    dtype = unit.ops[0].dtype
    return [Product(
        BlockDiagonal(u.to(dtype).contiguous()),
        exchange(rank, blocks),
        BlockDiagonal(s.permute(2, 0, 1).to(dtype).contiguous()),
        exchange(blocks, rank),
        BlockDiagonal(v.mT.to(dtype).contiguous()),
    )]  # fmt: skip


def _count_shared(blocks: int, unit: Unit, rank: int | None) -> list[Counts]:
    (op,) = unit.ops
    if rank is None:
        return [(op.numel(), op.bytes())]
    numel = rank * (sum(op.shape) + blocks**2)
    index = 2 * 4 * rank * blocks  # of the permutations
    return [(numel, numel * op.dtype.itemsize + index)]


def _parts(blocks: int, unit: Unit) -> Tensor:  # (blocks, blocks, out / blocks, in / blocks)
    return wide(unit.ops[0]).unflatten(1, (blocks, -1)).unflatten(0, (blocks, -1)).transpose(1, 2)


def _require_blocks(blocks: int, unit: Unit) -> int:
    """The largest rank of a part."""
    (site,), (op,) = unit.sites, unit.ops
    if any(side % blocks for side in op.shape):
        raise SiteError(
            site.where, f"its sides do not divide into {blocks} blocks",
            "Give another number of blocks, or leave it out of the targets",
        )  # fmt: skip
    return min(op.shape) // blocks


def _build(blocks: int, unit: Unit, rank: int) -> list[Operator]:
    most = _require_blocks(blocks, unit)
    if not 1 <= rank <= most:
        raise SiteError(
            unit.name, f"rank {rank} is outside 1 to {most}, a block's smaller side",
            "Ask for a rank in that range",
        )  # fmt: skip
    u, s, vh = torch.linalg.svd(_parts(blocks, unit), full_matrices=False)
    root = s[..., :rank].sqrt()
    left = u[..., :rank] * root[..., None, :]  # (a, c, out / blocks, r)
    right = root[..., None] * vh[..., :rank, :]  # (a, c, r, in / blocks)
    dtype = unit.ops[0].dtype
    return [Product(
        BlockDiagonal(left.transpose(1, 2).flatten(2).to(dtype).contiguous()),
        exchange(blocks, blocks, rank),
        BlockDiagonal(right.transpose(0, 1).flatten(1, 2).to(dtype).contiguous()),
    )]  # fmt: skip


def _counts(blocks: int, unit: Unit, rank: int | None) -> list[Counts]:
    (op,) = unit.ops
    if rank is None:
        return [(op.numel(), op.bytes())]
    numel = rank * blocks * sum(op.shape)
    index = 4 * rank * blocks**2  # of the permutation
    return [(numel, numel * op.dtype.itemsize + index)]


def _menu(blocks: int, unit: Unit) -> Menu:
    most = _require_blocks(blocks, unit)
    costs = {r: _counts(blocks, unit, r)[0][1] for r in range(1, most + 1)}
    dense = unit.bytes
    paying = [r for r in costs if costs[r] < dense]

    def spectrum() -> Tensor:
        return torch.linalg.svdvals(_parts(blocks, unit).double()).square().sum((0, 1))

    return menu_of_ranks([*paying, None], [*(costs[r] for r in paying), dense], spectrum)
