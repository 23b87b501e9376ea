"""Best low-rank approximation in the metric of a second moment, without inverting it.

argmin over rank r of ||(W - What) C^(1/2)||_F is What = U U^T W, where U (m, r) holds the top
eigenvectors of W C W^T. DRONE (Chen et al. 2021), SVD-LLM (2403.07378) and ROM share it.
"""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .checks import check_finite, check_matrix, check_rank, gaussian, own_generator, working_dtype
from .eigenspace import eigenspace_width, top_eigenspace
from .reduction import reduce_tall
from .svd import fix_signs
from .symmetric import symmetric_eigh, symmetric_product

logger = logging.getLogger(__name__)

Method = Literal["auto", "exact", "randomized"]

_DOUBLE_SIDE = 512
_EXACT_SIDE = 1024
_EXPECTED_APPLIES = 5
_LEVELS = 8
_SPIKES = 32
_SPIKED = 4


def top_left_subspace(
    w: Tensor,
    gram: Tensor | None,
    rank: int,
    *,
    generator: torch.Generator | None = None,
    method: Method = "auto",
) -> Tensor:
    """Orthonormal U (m, rank) minimising ||(W - U U^T W) C^(1/2)||_F.

    w: (m, n). gram: second moment C of the input, (n, n), its diagonal (n,), or None for the
    identity; any positive semidefinite C serves, however ill-conditioned or rank-deficient.
    Directions that C does not see complete the basis from W itself, largest first, so that full
    rank is lossless for every input. Half precisions are computed and returned in float32, sides
    up to 512 in float64. "auto" takes a dense eigendecomposition up to a side of 1024 and where
    the rank is large, subspace iteration elsewhere. `generator` (default: seed 0) serves the
    latter; equal generators give equal results.

    Raises ValueError for a rank outside 1..min(m, n), mismatched shapes, negative diagonals or
    non-finite entries.
    """
    if method not in ("auto", "exact", "randomized"):
        raise ValueError(f"method must be auto, exact or randomized, got {method!r}")
    check_rank(rank, _check_pair(w, gram, "gram"))
    generator = own_generator(generator, torch.device("cpu"))
    out = working_dtype(w, gram)
    rows, columns = w.shape
    w = _unit_peak(w.to(out))
    if rows <= columns:
        u = _solve(w, gram, rank, method, generator).to(out)
    else:
        core, lift = reduce_tall(w)
        u = lift(_solve(core, gram, rank, method, generator).to(out))
    return fix_signs(u, u.T)[0]


def projection_spectrum(w: Tensor, gram: Tensor | None) -> Tensor:
    """Squared singular values of W C^(1/2), (min(m, n),), descending and >= 0.

    w: (m, n). gram as in `top_left_subspace`. The energy that rank r loses is the sum of entries
    r and later. Values below eps of the first are rounding. Raises as `top_left_subspace`.
    """
    _check_pair(w, gram, "gram")
    out = working_dtype(w, gram)
    core = w.to(torch.float64 if min(w.shape) <= _DOUBLE_SIDE else out)
    metric = None if gram is None else gram.to(core)
    if core.shape[0] > core.shape[1]:
        core, _ = reduce_tall(core)
    values = torch.linalg.eigvalsh(symmetric_product(_weigh(core, metric), core))
    return values.flip(0).clamp_min(0).to(out)


def energy(w: Tensor, gram: Tensor | None) -> float:
    """tr(W C W^T) >= 0: the squared norm of w (m, n) in the metric of `gram`, summed in float64."""
    _check_pair(w, gram, "gram")
    core = w.to(working_dtype(w, gram))
    weighted = _weigh(core, None if gram is None else gram.to(core))
    return max(0.0, _inner(weighted, core))


def _solve(
    core: Tensor,
    gram: Tensor | None,
    rank: int,
    method: Method,
    generator: torch.Generator,
) -> Tensor:
    """Orthonormal (p, rank) for core (p, n) with p <= n, level by level, in float64 if small.

    One eigendecomposition resolves eigenvalues down to rounding of its largest. What lies below is
    resolved again on the deflated core, at its own scale; what C does not see, in the identity.
    """
    noise = 0.0 if gram is None else torch.finfo(gram.dtype).eps
    if core.shape[0] <= _DOUBLE_SIDE:
        core = core.double()
    gram = None if gram is None else _unit_peak(gram.to(core))
    found = core.new_zeros(core.shape[0], 0)
    for metric in (gram, None):
        for _ in range(_LEVELS):
            missing = rank - found.shape[1]
            residual = _deflate(core, found) if missing else core
            if missing == 0 or _is_rounding(residual, core):
                break
            values, vectors, scale = _leading(residual, metric, missing, method, generator)
            kept = int((values > _cut(core, residual, metric, noise, scale)).sum())
            if kept == 0:
                break
            found = _extend(found, vectors[:, : min(kept, missing)])
    missing = rank - found.shape[1]
    if missing:  # W itself has no further direction
        drawn = torch.linalg.qr(gaussian(core.shape[0], missing, core, generator)).Q
        found = _extend(found, drawn)
    return found


class _Leading(NamedTuple):
    """Eigenpairs, descending; `scale` is the value whose rounding limits all of them."""

    values: Tensor  # (k,)
    vectors: Tensor  # (p, k)
    scale: float


def _leading(
    core: Tensor, gram: Tensor | None, rank: int, method: Method, generator: torch.Generator
) -> _Leading:
    """Leading eigenpairs of core C core^T (p, p): all of them if exact, `rank` if randomised."""
    side = core.shape[0]
    weighted = _weigh(core, gram)  # (p, n)
    if method == "randomized" or (
        method == "auto" and side > _EXACT_SIDE and eigenspace_width(rank) <= 0.4 * side
    ):
        found = _iterate(core, weighted, rank, generator)
        if found is not None:
            return found
        logger.warning("subspace iteration did not settle on %s; eigh instead", tuple(core.shape))
    values, vectors = symmetric_eigh(symmetric_product(weighted, core))
    return _Leading(values, vectors, float(values[0]))


def _iterate(
    core: Tensor, weighted: Tensor, rank: int, generator: torch.Generator
) -> _Leading | None:
    """`rank` leading eigenpairs of weighted core^T, or None if they did not converge.

    Spikes go first, from a narrow block: float32 products with them in place would round away
    what lies five orders below.
    """
    side, columns = core.shape
    spikes = top_eigenspace(
        lambda block: weighted @ (core.T @ block),
        core,
        side,
        min(rank, _SPIKES),
        _inner(weighted, core),
        generator=generator,
    )
    count = int((spikes.values > _SPIKED * spikes.values[-1]).sum())
    values, vectors = spikes.values[:count], spikes.vectors[:, :count]
    if rank <= _SPIKES:
        if not spikes.converged:
            return None
        return _Leading(spikes.values, spikes.vectors, float(spikes.values[0]))
    core, weighted = _deflate(core, vectors), _deflate(weighted, vectors)
    width = eigenspace_width(rank - count)
    formed = 2 * side * side * (columns + _EXPECTED_APPLIES * width)
    implicit = 4 * side * columns * width * _EXPECTED_APPLIES
    moment = symmetric_product(weighted, core) if formed < implicit else None

    def apply(block: Tensor) -> Tensor:
        return weighted @ (core.T @ block) if moment is None else moment @ block

    total = _inner(weighted, core)
    rest = top_eigenspace(apply, core, side, rank - count, total, generator=generator)
    if not rest.converged:
        return None
    values = torch.cat([values, rest.values])
    return _Leading(values, _extend(vectors, rest.vectors), float(rest.values[0]))


def _cut(core: Tensor, residual: Tensor, gram: Tensor | None, noise: float, scale: float) -> float:
    """Size under which eigenvalues of residual C residual^T are rounding.

    Three sources: the eigendecomposition, the deflation, and the entries of C themselves, whose
    relative rounding `noise` acts like a random symmetric matrix of size sqrt(C_ii C_jj).
    """
    side = core.shape[0]
    eps = torch.finfo(core.dtype).eps
    spread = gram.diagonal() if gram is not None and gram.ndim == 2 else gram

    def spread_energy(a: Tensor) -> float:
        return float((a.square() if spread is None else a.square() @ spread).sum())

    deflation = (side * eps) ** 2 * spread_energy(core)
    entries = noise * spread_energy(residual) / side**0.5 if noise else 0.0
    return max(32 * eps * scale, deflation, entries)


def _extend(found: Tensor, new: Tensor) -> Tensor:
    """[found, new] for orthonormal blocks, with `new` made orthogonal to `found`."""
    for _ in range(2):
        overlap = found.T @ new
        new = new - found @ overlap
        if float(overlap.square().sum(0).max()) <= torch.finfo(new.dtype).eps:
            break  # so little was taken out that `new` is still orthonormal
        new = torch.linalg.qr(new).Q
    return torch.cat([found, new], dim=1)


def _deflate(core: Tensor, found: Tensor) -> Tensor:
    return core - found @ (found.T @ core) if found.shape[1] else core


def _is_rounding(residual: Tensor, core: Tensor) -> bool:
    limit = core.shape[0] * torch.finfo(core.dtype).eps * torch.linalg.vector_norm(core)
    return bool(torch.linalg.vector_norm(residual) <= limit)


def _weigh(core: Tensor, gram: Tensor | None) -> Tensor:
    """core C (p, n)."""
    if gram is None:
        return core
    return core * gram if gram.ndim == 1 else core @ gram


def _inner(a: Tensor, b: Tensor) -> float:
    """tr(a b^T), rows in the working dtype and their sum in float64."""
    return float(torch.linalg.vecdot(a, b).sum(dtype=torch.float64))


def _unit_peak(a: Tensor) -> Tensor:
    """a over its largest |entry|, so that products can neither overflow nor vanish."""
    return a / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)


def _check_pair(w: Tensor, gram: Tensor | None, name: str) -> tuple[int, int]:
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
