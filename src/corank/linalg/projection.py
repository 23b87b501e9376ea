"""Best low-rank approximation in the metric of a second moment, without inverting it.

argmin over rank r of ||(W - What) C^(1/2)||_F is What = U U^T W, where U (m, r) holds the top
eigenvectors of W C W^T. DRONE (Chen et al. 2021), SVD-LLM (2403.07378) and ROM share it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_rank, own_generator, working_dtype
from .leading import Method
from .levels import DOUBLE_SIDE, solve_levels
from .metric import check_pair, in_range, inner, weigh
from .reduction import lift_leading, reduce_tall, shifted_root
from .svd import signs
from .symmetric import symmetric_product, times_upper


def project(
    w: Tensor,
    gram: Tensor | None,
    rank: int,
    *,
    generator: torch.Generator | None = None,
    method: Method = "auto",
) -> tuple[Tensor, Tensor]:
    """Factors b (m, rank), a (rank, n) of the projection of w minimising ||(W - b a) C^(1/2)||_F.

    w: (m, n). gram: second moment C of the input, (n, n), its diagonal (n,), or None for the
    identity; any positive semidefinite C serves, however ill-conditioned or rank-deficient.
    b is an orthonormal U and a is U^T W (to 1e-2 for tall float32 weights at up to half their rank,
    whose b a is the same). Directions that C does not see complete the basis from W itself, largest
    first, so that full rank is lossless for every input. Half precisions are computed and returned
    in float32, sides up to 512 in float64. "auto" takes a dense eigendecomposition up to a side of
    1024 and where the rank is large, subspace iteration elsewhere. `generator` (default: seed 0)
    serves the latter; equal generators give equal results.

    Raises ValueError for a rank outside 1..min(m, n), mismatched shapes, negative diagonals or
    non-finite entries.
    """
    if method not in ("auto", "exact", "randomized"):
        raise ValueError(f"method must be auto, exact or randomized, got {method!r}")
    check_rank(rank, check_pair(w, gram, "gram"))
    generator = own_generator(generator, torch.device("cpu"))
    out = working_dtype(w, gram)
    rows, columns = w.shape
    w, scale = in_range(w.to(out))
    if rows <= columns:
        b = solve_levels(w, gram, rank, method, generator).to(out)
        a = b.T @ w
    else:
        b, a = _project_tall(w, gram, rank, method, generator)
    sign = signs(b)
    return b.mul_(sign), a.mul_(scale * sign[:, None])


def _project_tall(
    w: Tensor, gram: Tensor | None, rank: int, method: Method, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The factors of w (m, n), m > n, from its square core T: Q V and V^T T where W = Q T."""
    if w.dtype == torch.float32 and w.shape[1] > DOUBLE_SIDE and 2 * rank <= w.shape[1]:
        core = shifted_root(w)
        if core is not None:
            v = solve_levels(core, gram, rank, method, generator)
            b = lift_leading(w, core, v)
            if b is not None:
                return b, times_upper(v.T, core)
    core, lift = reduce_tall(w)
    v = solve_levels(core, gram, rank, method, generator).to(w)
    return lift(v), times_upper(v.T, core)


def projection_spectrum(w: Tensor, gram: Tensor | None) -> Tensor:
    """Squared singular values of W C^(1/2), (min(m, n),), descending and >= 0.

    w: (m, n). gram as in `project`. The energy that rank r loses is the sum of entries
    r and later. Values below eps of the first are rounding. Raises as `project`.
    """
    check_pair(w, gram, "gram")
    out = working_dtype(w, gram)
    core = w.to(torch.float64 if min(w.shape) <= DOUBLE_SIDE else out)
    metric = None if gram is None else gram.to(core)
    if core.shape[0] > core.shape[1]:
        core, _ = reduce_tall(core)
    values = torch.linalg.eigvalsh(symmetric_product(weigh(core, metric), core))
    return values.flip(0).clamp_min(0).to(out)


def energy(w: Tensor, gram: Tensor | None) -> float:
    """tr(W C W^T) >= 0: the squared norm of w (m, n) in the metric of `gram`, summed in float64."""
    check_pair(w, gram, "gram")
    core = w.to(working_dtype(w, gram))
    weighted = weigh(core, None if gram is None else gram.to(core))
    return max(0.0, inner(weighted, core))
