"""Orthonormal bases of tall blocks by Cholesky QR: matrix products instead of Householder panels.

Yamamoto, Nakatsukasa, Yanagisawa and Fukaya (2015): each pass solves with the Cholesky factor of
the block's Gram matrix. A Gram matrix squares the condition, so the first pass takes it in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .symmetric import upper_product

_SMALLEST_PIVOT = {torch.float64: 1e-5, torch.float32: 3e-3}


def orthonormal(block: Tensor) -> Tensor:
    """Orthonormal basis (p, k) of the columns of block (p, k), p >= k, to working accuracy."""
    first = independent(block)
    second = _pass(first, first.dtype)
    return torch.linalg.qr(first).Q if second is None else second


def independent(block: Tensor, *, settled: bool = False) -> Tensor:
    """Well-conditioned columns (p, k) of the span of block (p, k): all that a product needs.

    Orthonormal to about 1e-2; Householder QR takes over where columns are dependent. settled: they
    are expected to be far from it, so that a pass in the working precision comes first.
    """
    found = _pass(block, block.dtype if settled else torch.float64)
    if found is None and settled and block.dtype != torch.float64:
        found = _pass(block, torch.float64)
    return torch.linalg.qr(block).Q if found is None else found


def renewed(block: Tensor) -> Tensor:
    """Orthonormal basis of the span of a block that rounding has bent a little."""
    found = _pass(block, block.dtype)
    return orthonormal(block) if found is None else found


def _pass(block: Tensor, dtype: torch.dtype) -> Tensor | None:
    """block times the inverse Cholesky factor of its Gram in `dtype`; None if that is unsafe."""
    wide = block.to(dtype).T
    gram = upper_product(wide, wide)
    norms = gram.diagonal().sqrt()
    lower, failed = torch.linalg.cholesky_ex(gram.T)
    pivots = lower.diagonal() / norms
    if bool(failed) or not bool((pivots > _SMALLEST_PIVOT[dtype]).all()):
        return None
    return torch.linalg.solve_triangular(lower.to(block).T, block, upper=True, left=False)
