"""A matrix in the metric of a second moment: argument checks, products and energies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_finite, check_matrix
from .symmetric import BLOCK, upper_triangular

_NARROW = 2.0**-10


def check_pair(w: Tensor, gram: Tensor | None, name: str) -> tuple[int, int]:
    """Shape of w (m, n), after checking that `gram` is a second moment of n features."""
    check_matrix(w, "w")
    rows, columns = w.shape
    if gram is not None:
        if tuple(gram.shape) not in ((columns,), (columns, columns)):
            raise ValueError(
                f"{name} must be ({columns},) or ({columns}, {columns}) for w {tuple(w.shape)}, "
                f"got {tuple(gram.shape)}"
            )
        check_finite(gram, name)
        diagonal = gram if gram.ndim == 1 else gram.diagonal()
        if bool((diagonal < 0).any()):
            raise ValueError(f"{name} has a negative diagonal; a second moment cannot")
    return rows, columns


def weigh(core: Tensor, gram: Tensor | None) -> Tensor:
    """core C (p, n), at half the price where core is an upper triangle."""
    if gram is None:
        return core
    if gram.ndim == 1:
        return core * gram
    if core.shape != gram.shape or not upper_triangular(core):
        return core @ gram
    weighted = torch.empty_like(gram)
    for start in range(0, core.shape[0], BLOCK):
        rows = slice(start, start + BLOCK)
        torch.matmul(core[rows, start:], gram[start:], out=weighted[rows])
    return weighted


def inner(a: Tensor, b: Tensor) -> float:
    """tr(a b^T), rows in the working dtype and their sum in float64."""
    return float(torch.bmm(a[:, None, :], b[:, :, None]).sum(dtype=torch.float64))


def in_range(a: Tensor) -> tuple[Tensor, float]:
    """a / s and s: a power of two, 1 where products of entries of a neither overflow nor vanish."""
    low, high = a.aminmax()
    peak = max(-float(low), float(high))
    if peak == 0 or _NARROW <= peak <= 1 / _NARROW:
        return a, 1.0
    scale = 2.0 ** (math.frexp(peak)[1] - 1)
    return a / scale, scale


def deflate(core: Tensor, found: Tensor) -> Tensor:
    """core (p, n) without its part in the span of found (p, k), orthonormal."""
    return core - found @ (found.T @ core) if found.shape[1] else core


def extend(found: Tensor, new: Tensor) -> Tensor:
    """[found, new] for orthonormal blocks, with `new` made orthogonal to `found`."""
    if not found.shape[1]:
        return new
    for _ in range(2):
        overlap = found.T @ new
        new = new - found @ overlap
        if float(overlap.square().sum(0).max()) <= torch.finfo(new.dtype).eps:
            break  # so little was taken out that `new` is still orthonormal
        new = torch.linalg.qr(new).Q
    return torch.cat([found, new], dim=1)
