"""Leading eigenpairs of core C core^T: all of them at once, or by iteration after its spikes."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .checks import gaussian
from .eigenspace import eigenspace_width, top_eigenspace
from .metric import deflate, extend, inner, weigh
from .orthonormal import orthonormal
from .sketch import sketch_rows
from .symmetric import symmetric_eigh, symmetric_product

logger = logging.getLogger(__name__)

Method = Literal["auto", "exact", "randomized"]

_EXACT_SIDE = 1024
_EXPECTED_PRODUCTS = 2
_SPIKES = 32
_APART = 16
_SPIKED = 1e-3
_PROBES = 16
_SETTLED = 1e-3


class Leading(NamedTuple):
    """Eigenpairs, descending; `scale` is the value whose rounding limits all of them."""

    values: Tensor  # (k,)
    vectors: Tensor  # (p, k)
    scale: float


def leading(
    core: Tensor, gram: Tensor | None, rank: int, method: Method, generator: torch.Generator
) -> Leading:
    """Leading eigenpairs of core C core^T (p, p): all of them if exact, `rank` if randomised."""
    side = core.shape[0]
    weighted = weigh(core, gram)  # (p, n)
    if method == "randomized" or (
        method == "auto" and side > _EXACT_SIDE and eigenspace_width(rank) <= 0.5 * side
    ):
        found = _iterate(core, weighted, rank, generator)
        if found is not None:
            return found
        logger.warning("subspace iteration did not settle on %s; eigh instead", tuple(core.shape))
    values, vectors = symmetric_eigh(symmetric_product(weighted, core))
    return Leading(values, vectors, float(values[0]))


def _iterate(
    core: Tensor, weighted: Tensor, rank: int, generator: torch.Generator
) -> Leading | None:
    """`rank` leading eigenpairs of weighted core^T, or None if they did not converge.

    Spikes go first, from a narrow block: float32 products with them in place would round away
    what lies five orders below.
    """
    side, columns = core.shape
    values, vectors = core.new_zeros(0), core.new_zeros(side, 0)
    total = max(0.0, inner(weighted, core))
    if rank > _SPIKES:
        values, vectors = _spikes(core, weighted, total, generator)
        core, weighted = deflate(core, vectors), deflate(weighted, vectors)
        total = max(0.0, inner(weighted, core)) if len(values) else total
    missing = rank - values.shape[0]
    width = min(side, eigenspace_width(missing))
    formed = side * side * (columns + 2 * width * _EXPECTED_PRODUCTS)
    implicit = side * columns * width * (2 + 4 * _EXPECTED_PRODUCTS)
    moment = symmetric_product(weighted, core) if formed < implicit else None

    def apply(block: Tensor) -> Tensor:
        if moment is None:
            return ((block.T @ core) @ weighted.T).T
        return (block.T @ moment).T

    if moment is None:
        start = (sketch_rows(core, width, generator) @ weighted.T).T
    else:
        start = sketch_rows(moment, width, generator).T
    rest = top_eigenspace(apply, start, missing, total)
    if not rest.converged:
        return None
    values = torch.cat([values, rest.values])
    return Leading(values, extend(vectors, rest.vectors), float(rest.values[0]))


def _spikes(
    core: Tensor, weighted: Tensor, total: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Eigenpairs of weighted core^T beside which rounding would hide the mean of the others.

    Looked for only if the largest eigenvalue, which two products with a few vectors estimate from
    below, is of that size. Those that have not converged are left in.
    """
    side = core.shape[0]
    limit = total / side * _SPIKED / torch.finfo(core.dtype).eps

    def apply(block: Tensor) -> Tensor:
        return weighted @ (core.T @ block)

    basis = orthonormal(apply(gaussian(side, _PROBES, core, generator)))
    image = apply(basis)
    if float(torch.linalg.vector_norm(image, dim=0).max()) * 4 < limit:
        return core.new_zeros(0), core.new_zeros(side, 0)
    block = gaussian(side, eigenspace_width(_SPIKES), core, generator)
    for _ in range(3):
        basis = orthonormal(apply(block))
        block = basis
    image = apply(basis)
    values, rotation = symmetric_eigh(symmetric_product(basis.T, image.T))
    vectors = basis @ rotation
    residual = torch.linalg.vector_norm(image @ rotation - vectors * values, dim=0)
    known = (values > _APART * values[_SPIKES - 1]) & (residual <= _SETTLED * values)
    count = int(known.cumprod(0).sum())
    return values[:count], vectors[:, :count]
