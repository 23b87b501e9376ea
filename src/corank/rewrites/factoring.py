"""Sizes as products of smaller ones."""

from __future__ import annotations

from math import isqrt


def factor_pair(size: int, factor: int = -1) -> tuple[int, int]:
    """Two factors of `size`, the smaller first, nearest to its square root.

    A `factor` that divides it comes first as it is; another one is an upper limit for the smaller.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = isqrt(size) if factor < 0 else min(factor, isqrt(size))
    small = next(d for d in range(max(limit, 1), 0, -1) if size % d == 0)
    return small, size // small


def digits(size: int, count: int) -> tuple[int, ...]:
    """`count` factors of `size` as even as divisors allow, the larger ones last."""
    found: list[int] = []
    for left in range(count, 1, -1):
        target = round(size ** (1 / left))
        small = next(d for d in range(max(target, 1), 0, -1) if size % d == 0)
        found.append(small)
        size //= small
    return (*found, size)


def central_digits(size: int, count: int) -> tuple[int, ...]:
    """`digits`, the largest in the middle and the smaller the further out, 1 where none is left."""
    falling = sorted(digits(size, count), reverse=True)
    return (*falling[1::2][::-1], *falling[::2])
