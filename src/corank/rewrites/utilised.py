from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import balance, eigh_clamped, truncated_svd
from ..metrics import second_moment
from ..operators import LowRank, Operator
from .rewrite import Family, Unit
from .truncation import truncation


def utilised() -> Family:
    """W -> P_out W P_in, truncated to the rank that remains.

    P_in and P_out project on the leading eigenvectors of the inputs' and of the outputs' second
    moment, as many as hold one share e of each; a rank r takes the largest e for which the
    smaller of the two subspaces has at most r dimensions.
    """
    return replace(truncation(second_moment()), build=_build)


def _build(unit: Unit, rank: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    if "gram" not in site.stats:
        raise SiteError(site.where, "an embedding has no input subspace", "Exclude it")
    weight, gram = op.dense().detach().double(), site.stats["gram"].double()
    into, left_of_in = _subspace(gram)
    out, left_of_out = _subspace(weight @ gram @ weight.mT)
    # what is left out decreases with the dimension, so the first subspace to reach `rank` decides
    lost = min(float(left_of_in[rank - 1]), float(left_of_out[rank - 1]))
    k_in, k_out = (_dimensions(left, lost) for left in (left_of_in, left_of_out))
    p_in, p_out = into[:, :k_in], out[:, :k_out]
    projected = p_out @ (p_out.mT @ weight @ p_in) @ p_in.mT
    u, s, vh, _ = truncated_svd(projected, rank)
    b, a = balance(u * s, vh, op.dtype)
    return [LowRank(b.contiguous(), a.contiguous())]


def _subspace(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors, and the share of the trace left out after the first k of them, k = 1, 2 ..."""
    values, vectors = eigh_clamped(moment)
    left = 1 - values.cumsum(0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return vectors, left


def _dimensions(left: Tensor, lost: float) -> int:
    """How many eigenvectors it takes to leave out no more than `lost`."""
    return min(int((left > lost).sum()) + 1, len(left))
