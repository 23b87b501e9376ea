"""Matrices of signs, with scales for rows, columns and what lies between."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..linalg import balance, truncated_svd
from ..metrics import euclidean
from ..operators import Diagonal, Operator, Product, Signs, Sum
from ..operators.packing import packed_width
from .adapting import require_rank
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit


def signed() -> Family:
    """W -> diag(a) sign(W) diag(b), where a b^T is the nearest matrix of rank 1 to |W|."""

    def build(unit: Unit, size: int) -> list[Operator]:
        return [_signed(wide(unit.ops[0]), unit, 0.0)]

    def counts(unit: Unit, size: int) -> list[Counts]:
        (op,) = unit.ops
        return [_add(_count_signs(*op.shape, op.dtype), _count_vector(op.shape[1], op.dtype))]

    def menu(unit: Unit) -> Menu:
        def error() -> list[float]:
            return [float((wide(unit.ops[0]) - build(unit, 0)[0].dense().float()).square().sum())]

        return Menu([0], [counts(unit, 0)[0][1]], error)

    return Family(menu, build, counts)


def signed_factors(bits: float | None, residual: bool, slope: float) -> Family:
    """W -> diag(a) sign(U) diag(l) sign(V) diag(b), with U V the SVD of rank s, for a size of s.

    The scales are those of `signed` for U and for V. `residual`: a second such matrix of that size
    is fitted to what the first leaves. `bits`, for each number of W: the one s, a multiple of 8,
    that takes so many where scales take 16; None: any multiple of 8.
    """
    build = partial(_build_factors, residual, slope)
    counts = partial(_count_factors, residual)

    def menu(unit: Unit) -> Menu:
        (op,) = unit.ops
        most = min(op.shape) // 8 * 8
        sizes = [_size(op.shape, bits, residual)] if bits else [*range(8, most + 1, 8)]
        whole = menu_by_building(unit, sizes, counts, build, error_in(euclidean()))
        return whole.at([0]) if bits and len(whole.sizes) > 1 else whole

    return Family(menu, build, counts)


def _size(shape: tuple[int, int], bits: float, residual: bool) -> int:
    out, into = shape
    copies = 2 if residual else 1
    room = (out * into * bits - 16 * copies * (out + into)) / (copies * (out + into + 16))
    return min(max(int(room) // 8 * 8, 8), max(min(shape) // 8 * 8, 8))


def _scales(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """a (out,) and b (in,), not negative, of like size, with a b^T the nearest to |matrix|."""
    u, s, vh, _ = truncated_svd(matrix.abs(), 1)
    b, a = balance(u * s, vh)
    return b[:, 0].abs(), a[0].abs()


def _signed(matrix: Tensor, unit: Unit, slope: float) -> Operator:
    rows, columns = _scales(matrix)
    dtype = unit.ops[0].dtype
    return Product(
        Signs(matrix.to(dtype), rows.to(dtype), slope), Diagonal(columns.to(dtype).contiguous())
    )


def _build_factors(residual: bool, slope: float, unit: Unit, size: int) -> list[Operator]:
    wanted = wide(unit.ops[0])
    require_rank(size, unit.sites[0])
    first = _factors(wanted, unit, size, slope)
    if not residual:
        return [first]
    return [Sum(first, _factors(wanted - first.dense().to(wanted), unit, size, slope))]


def _factors(wanted: Tensor, unit: Unit, size: int, slope: float) -> Operator:
    u, s, vh, _ = truncated_svd(wanted, size, generator=unit.sites[0].generator())
    left, right = u * s.sqrt(), s.sqrt()[:, None] * vh
    (rows, inner), (outer, columns) = _scales(left), _scales(right)
    dtype = unit.ops[0].dtype
    return Product(
        Signs(left.to(dtype).contiguous(), rows.to(dtype), slope),
        Signs(right.to(dtype).contiguous(), (inner * outer).to(dtype), slope),
        Diagonal(columns.to(dtype).contiguous()),
    )


def _count_factors(residual: bool, unit: Unit, size: int | None) -> list[Counts]:
    (op,) = unit.ops
    if size is None:
        return [(op.numel(), op.bytes())]
    (out, into), dtype = op.shape, op.dtype
    signs = _add(_count_signs(out, size, dtype), _count_signs(size, into, dtype))
    one = _add(signs, _count_vector(into, dtype))
    return [_add(one, one) if residual else one]


def _count_signs(out: int, into: int, dtype: torch.dtype) -> Counts:
    """Codes, a scale for each row, and the two levels."""
    return out * into + out + 2, out * packed_width(into, 1) + (out + 2) * dtype.itemsize


def _count_vector(length: int, dtype: torch.dtype) -> Counts:
    return length, length * dtype.itemsize


def _add(one: Counts, other: Counts) -> Counts:
    return one[0] + other[0], one[1] + other[1]
