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
    left, left_norm = _normalise(b.double().T)  # (r, m), (r,)
    right, right_norm = _normalise(a.double())  # (r, n), (r,)
    size = left_norm * right_norm  # (r,), each a root: the product of the norms may overflow
    order = size.argsort(descending=True, stable=True)
    left, right = (left * size[:, None]).T, right * size[:, None]
    balanced_b = left[:, order].to(dtype or b.dtype)
    balanced_a = right[order].to(dtype or a.dtype)
    if not (bool(torch.isfinite(balanced_b).all()) and bool(torch.isfinite(balanced_a).all())):
        raise ValueError(
            f"balanced factors reach {float(size.max()):.3g}, beyond {balanced_b.dtype}; "
            "use a wider dtype"
        )
    return balanced_b, balanced_a


def _normalise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit norm (zero rows stay) and the square roots of their norms, without overflow."""
    peak = rows.abs().amax(dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
    scaled = rows / peak[:, None]
    norm = torch.linalg.vector_norm(scaled, dim=1)
    unit = scaled / norm.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    return unit, peak.sqrt() * norm.sqrt()
