"""Randomised SVD: block Krylov and subspace iteration, with an error estimate that is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .checks import check_finite, check_matrix, check_rank, gaussian, own_generator, working_dtype
from .svd import SVDResult, exact_svd, fix_signs

_PROBES = 10
_FAILURE = 1e-6


@dataclass(frozen=True)
class Implicit:
    """A linear map known by its products: matmul (n, k) -> (m, k) and rmatmul (m, k) -> (n, k)."""

    shape: tuple[int, int]
    matmul: Callable[[Tensor], Tensor]
    rmatmul: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    device: torch.device


def randomized_svd(
    a: Tensor | Implicit,
    rank: int,
    *,
    oversample: int = 8,
    iterations: int = 3,
    method: Literal["krylov", "subspace"] = "krylov",
    generator: torch.Generator | None = None,
) -> SVDResult:
    """Near-best rank-`rank` SVD of a (m, n), from a sketch of rank + oversample columns.

    "krylov" keeps the blocks of every iteration (Musco and Musco 2015), "subspace" the last
    (Halko, Martinsson and Tropp 2011, algorithm 4.4); both orthonormalise every product.
    iterations >= 0 counts products with a a^T after the first. Half precisions are computed and
    returned in float32. `generator` (default: seed 0) is the only source of randomness.

    `error` bounds the spectral norm of the residual from above by 10 Gaussian probes, except with
    probability 1e-6 (same paper, lemma 4.1); it exceeds the Frobenius norm by about 3 times.

    Raises ValueError for a rank outside 1..min(m, n), negative oversample or iterations, an
    unknown method, or non-finite entries or products.
    """
    operator = a if isinstance(a, Implicit) else _explicit(a)
    rows, columns = operator.shape
    check_rank(rank, operator.shape)
    if oversample < 0 or iterations < 0:
        raise ValueError(
            f"oversample and iterations must be >= 0, got {oversample} and {iterations}"
        )
    if method not in ("krylov", "subspace"):
        raise ValueError(f"method must be krylov or subspace, got {method!r}")
    generator = own_generator(generator, torch.device("cpu"))
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)
    width = min(rank + oversample, rows, columns)
    block = _image(operator, gaussian(columns, width, like, generator))  # (m, width)
    blocks = [block]
    for _ in range(iterations):
        block = _image(operator, torch.linalg.qr(operator.rmatmul(block)).Q)
        blocks.append(block)
    kept = torch.cat(blocks, dim=1) if method == "krylov" else block
    q = torch.linalg.qr(kept).Q  # (m, at most min(m, blocks * width))
    u, s, vh, _ = exact_svd(operator.rmatmul(q).T)
    u, vh = fix_signs(q @ u[:, :rank], vh[:rank])
    s = s[:rank]
    return SVDResult(u, s, vh, _residual_bound(operator, u, s, vh, generator))


def _image(operator: Implicit, block: Tensor) -> Tensor:
    """Orthonormal basis (m, k) of operator @ block."""
    image = operator.matmul(block)
    check_finite(image, "a product with a")
    return torch.linalg.qr(image).Q


def _residual_bound(
    operator: Implicit, u: Tensor, s: Tensor, vh: Tensor, generator: torch.Generator
) -> float:
    """Upper estimate of ||a - u diag(s) vh|| in the spectral norm."""
    probes = gaussian(operator.shape[1], _PROBES, s, generator)
    residual = operator.matmul(probes) - u @ (s[:, None] * (vh @ probes))
    largest = float(torch.linalg.vector_norm(residual, dim=0).max())
    return _FAILURE ** (-1 / _PROBES) * math.sqrt(2 / math.pi) * largest


def _explicit(a: Tensor) -> Implicit:
    check_matrix(a, "a")
    wide = a.to(working_dtype(a))
    return Implicit(
        (wide.shape[0], wide.shape[1]), wide.matmul, wide.T.matmul, wide.dtype, wide.device
    )
