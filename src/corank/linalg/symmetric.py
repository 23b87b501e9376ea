"""Decompositions of positive semidefinite matrices whose small eigenvalues may be rounding."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .checks import DecompositionError, check_matrix, working_dtype

logger = logging.getLogger(__name__)

_DOUBLE_SIDE = 2048
_NEGATIVE_PART = 1e-2
_TINY = 1e-60  # a diagonal whose root is still a number
BLOCK = 384


def eigh_clamped(c: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) descending and >= 0, and eigenvectors (n, n), of a second moment c (n, n).

    Computed in float64 for n <= 2048 and in the working dtype above; returned in the working dtype
    (float32 for half precisions). Negative eigenvalues are rounding of a sum of squares and become
    zero.

    Raises ValueError if `c` is not square and finite, or if its negative part exceeds 1% of its
    largest eigenvalue (then it is no second moment); DecompositionError if no driver converges.
    """
    check_square(c, "c")
    out = working_dtype(c)
    wide = c.to(torch.float64 if c.shape[0] <= _DOUBLE_SIDE else out)
    values, vectors = symmetric_eigh((wide + wide.T) / 2)
    if -float(values[-1]) > _NEGATIVE_PART * max(float(values[0]), 0.0):
        raise ValueError(
            f"c is not positive semidefinite: eigenvalues span {float(values[-1]):.3g} to "
            f"{float(values[0]):.3g}; pass a second moment"
        )
    return values.clamp_min(0).to(out), vectors.to(out)


def symmetric_eigh(c: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) descending and eigenvectors (n, n) of a finite symmetric c, in its dtype.

    Reads the lower triangle only.

    Retries once on the CPU in float64 (logged). Raises DecompositionError if that fails too.
    """
    try:
        values, vectors = torch.linalg.eigh(c)
        if bool(torch.isfinite(values).all()) and bool(torch.isfinite(vectors).all()):
            return values.flip(0), vectors.flip(1)
        reason = "non-finite result"
    except torch.linalg.LinAlgError as failure:
        reason = str(failure)
    logger.warning("eigh failed (%s); retrying on the CPU in float64", reason)
    try:
        values, vectors = torch.linalg.eigh(c.to("cpu", torch.float64))
    except torch.linalg.LinAlgError as failure:
        raise DecompositionError(
            f"eigh of a finite {tuple(c.shape)} matrix failed: {reason}; then {failure}"
        ) from failure
    return values.flip(0).to(c), vectors.flip(1).to(c)


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T (p, p) for a, b (p, n) whose product is symmetric: half of its blocks are computed."""
    if len(b) <= BLOCK:
        moment = a @ b.T
        return (moment + moment.T) / 2
    moment = upper_product(a, b)
    for start in range(0, len(b), BLOCK):
        rows, rest = slice(start, start + BLOCK), slice(start + BLOCK, None)
        moment[rest, rows] = moment[rows, rest].T
        block = moment[rows, rows]
        block.copy_((block + block.T) / 2)
    return moment


def upper_product(a: Tensor, b: Tensor) -> Tensor:
    """The upper triangle of a symmetric a b^T (p, p) for a, b (p, n); what lies below is not set.

    Transposed, it is what decompositions read.
    """
    product = a.new_empty(len(a), len(b))
    triangle = b.shape[0] == b.shape[1] and upper_triangular(b)
    for start in range(0, len(b), BLOCK):
        rows, zeros = slice(start, start + BLOCK), start if triangle else 0
        torch.matmul(a[rows, zeros:], b[start:, zeros:].T, out=product[rows, start:])
    return product


def upper_triangular(a: Tensor) -> bool:
    """Whether blocks of `BLOCK` below the diagonal of a (n, n) are zero."""
    return not any(bool(a[i:, i - BLOCK : i].any()) for i in range(BLOCK, len(a), BLOCK))


def times_upper(rows: Tensor, triangle: Tensor) -> Tensor:
    """rows (r, n) times an upper triangle (n, n), without its zeros."""
    parts = [
        rows[:, : start + BLOCK] @ triangle[: start + BLOCK, start : start + BLOCK]
        for start in range(0, len(triangle), BLOCK)
    ]
    return torch.cat(parts, dim=1)


def root_psd(c: Tensor) -> Tensor:
    """Thin root R (n, k) with R R^T = c for c (n, n) of numeric rank k; columns by size.

    Eigenvalues below n * eps of the largest are dropped. A zero matrix gives k = 0.
    """
    values, vectors = eigh_clamped(c)
    kept = values > numeric_cut(values, c.shape[0])
    return vectors[:, kept] * values[kept].sqrt()


def sqrt_psd(c: Tensor) -> Tensor:
    """Symmetric positive semidefinite square root (n, n) of c (n, n)."""
    values, vectors = eigh_clamped(c)
    return (vectors * values.sqrt()) @ vectors.T


def lower_root(c: Tensor, ridge: float) -> Tensor:
    """L (n, n), lower triangular, float64, with L L^T = c + ridge * trace(c) / n * I.

    Where rounding has left a second moment c (n, n) indefinite even so, as much of its own diagonal
    is added as makes it definite: 1e-7 of it, or that times a power of ten, up to 1e-2. A zero
    matrix gives a tiny multiple of I. Raises DecompositionError for what is no second moment.
    """
    wide = add_ridge(check_square(c, "c").double(), ridge)
    diagonal = c.double().diagonal().clamp_min(0)
    for share in (0.0, *(10.0**-k for k in range(7, 1, -1))):
        lower, failed = torch.linalg.cholesky_ex(wide + (share * diagonal + _TINY).diag())
        if not bool(failed):
            return lower
    raise DecompositionError(
        f"a {tuple(c.shape)} matrix is not positive semidefinite; pass a second moment"
    )


def add_ridge(c: Tensor, relative: float) -> Tensor:
    """c + relative * trace(c) / n * I for c (..., n, n), or the same on a diagonal c (n,).

    Raises ValueError for a negative or non-finite `relative`.
    """
    if not 0 <= relative < float("inf"):
        raise ValueError(f"relative ridge must be finite and >= 0, got {relative}")
    if c.ndim == 1:
        return c + relative * c.mean()
    check_square(c if c.ndim == 2 else c.flatten(0, -3)[0], "c")
    level = relative * c.diagonal(dim1=-2, dim2=-1).mean(-1)
    return c + level[..., None, None] * torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)


def about_mean(moment: Tensor, mean: Tensor) -> Tensor:
    """E[(x - mean) (x - mean)^T] from E[x x^T] (n, n), or its diagonal from that of it (n,).

    What is constant has no variance, whatever rounding says: no diagonal is below 0.
    """
    if moment.ndim == 1:
        return (moment - mean.square()).clamp_min(0)
    found = moment - torch.outer(mean, mean)
    found.diagonal().clamp_(min=0)
    return found


def check_square(c: Tensor, name: str) -> Tensor:
    """Return `c` if it is a finite square matrix, else raise TypeError or ValueError."""
    check_matrix(c, name)
    if c.shape[0] != c.shape[1]:
        raise ValueError(f"{name} must be square, got shape {tuple(c.shape)}")
    return c


def numeric_cut(values: Tensor, side: int) -> float:
    """Size under which descending eigenvalues of a (side, side) matrix are rounding."""
    return side * torch.finfo(values.dtype).eps * max(float(values[0]), 0.0)
