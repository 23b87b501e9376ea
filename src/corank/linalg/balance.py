"""Equal-sized factors, so that half precisions neither overflow nor lose the small part."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix


def balance(b: Tensor, a: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Same product b @ a, with column norms of b (m, r) equal to row norms of a (r, n).

    Ranks leave ordered by the size of their rank-one term, largest first. Scales are computed in
    float64; the factors leave in `dtype` (default: b's own and a's own). A rank whose term is
    exactly zero leaves as zeros on both sides.

    Raises ValueError if shapes do not match, entries are not finite, or the balanced factors do
    not fit the range of the result's dtype.
    """
    check_matrix(b, "b")
    check_matrix(a, "a")
    if b.shape[1] != a.shape[0]:
        raise ValueError(f"b {tuple(b.shape)} and a {tuple(a.shape)} do not share a rank")
    left, right = b.double(), a.double()
    column = torch.linalg.vector_norm(left, dim=0)  # (r,)
    row = torch.linalg.vector_norm(right, dim=1)  # (r,)
    size = column.sqrt() * row.sqrt()  # roots first: the product of the norms may overflow
    order = size.argsort(descending=True, stable=True)
    left = left * _ratio(size, column)
    right = right * _ratio(size, row)[:, None]
    balanced_b = left[:, order].to(dtype or b.dtype)
    balanced_a = right[order].to(dtype or a.dtype)
    if not (bool(torch.isfinite(balanced_b).all()) and bool(torch.isfinite(balanced_a).all())):
        raise ValueError(
            f"balanced factors reach {float(size.max()):.3g}, beyond {balanced_b.dtype}; "
            "use a wider dtype"
        )
    return balanced_b, balanced_a


def _ratio(size: Tensor, norm: Tensor) -> Tensor:
    """size / norm, and zero where the rank-one term is zero."""
    return torch.where(size > 0, size / norm, torch.zeros_like(size))
