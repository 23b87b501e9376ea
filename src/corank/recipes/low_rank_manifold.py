"""Weights that stay on the manifold of their rank while they train."""

from __future__ import annotations

from torch import Tensor

from ..control import Control
from ..control.conditioned import conditioned, to_manifold, to_tangent
from ..control.integrating import flowing, integrate, take_turns
from ..errors import SiteError
from ..linalg import truncated_svd
from ..models import Site
from ..operators import Operator, trainable
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite, between
from ..rewrites.adapting import leaf_dtype, require_rank
from .counts import each


def _leading(op: Operator, site: Site, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    weight = op.dense().detach().to(leaf_dtype(op))
    u, s, vh, _ = truncated_svd(weight, rank, generator=site.generator())
    return u, s, vh


@method(
    Paper(
        "Robust low-rank training via approximate orthonormal constraints",
        "2306.01485",
        "the authors' code, 'approx_orth': projected gradients, retraction by QR, clipped S",
        "the start is not given in what was read: W's leading singular triples, S's clipped; tau "
        "is eps - 1 of the code; any optimiser steps, where the code has its own",
    ),
    area="train",
    laws=("factorization", "from_w"),
    equation=lambda w, p, **_: p["b"] @ p["a"] @ p["weight"],
)
def condlr(rank: int = 64, tau: float = 0.1) -> Factorization:
    """U S V with orthonormal U and V, and S of a condition of at most 1 + tau: so W's is too.

    tau: over 0.
    """
    if tau <= 0:
        raise ValueError(f"tau={tau} must be over 0")

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        u, s, v = _leading(op, site, rank)
        return trainable(between(u, conditioned(s.diag(), tau), v))

    control = Control(
        before_step=to_tangent, after_step=lambda training: to_manifold(training, tau)
    )
    count = each(lambda out, into: rank * (out + into) + rank**2)
    return Factorization(Rewrite(rewrite), count, controls=(control,))


@method(
    Paper(
        "Low-rank lottery tickets: finding efficient low-rank neural networks via matrix "
        "differential equations",
        "2205.13571",
        "the rank-adaptive integrator and its defaults through the authors' code, whose slips "
        "(rows of V^T used as columns, the last value left out of the tail) are not repeated",
        "K and L, and S, move in turns, each on a batch and in an optimiser step of its own, where "
        "the paper has two gradients of one batch; other parameters move in every step; moments "
        "of the optimiser stay as they are when the bases turn (plain SGD has none); the start is "
        "W's leading singular triples",
    ),
    area="train",
    laws=("factorization", "from_w", "moves_frozen", "changes_shape"),
)
def dlrt(rank: int = 64, tolerance: float = 0.1, least: int = 2) -> Factorization:
    """U S V whose bases are extended by a step of K = U S and L = S V, then cut as S allows.

    rank: at the start, at most half the shorter side, so that the bases can double. tolerance: the
    share of S's norm, 0 to 1, that may be cut; least: ranks that stay. At the planned end, if the
    controller knows it, each weight becomes a plain low-rank product.
    """
    if not 0 <= tolerance < 1 or least < 1:
        raise ValueError(f"tolerance={tolerance}, least={least}: within [0, 1), and at least 1")

    def rewrite(op: Operator, site: Site) -> Operator:
        if not 1 <= rank <= min(op.shape) // 2:
            raise SiteError(
                site.where,
                f"rank {rank} is outside 1 to {min(op.shape) // 2}, half its shorter side",
                "Ask for a rank in that range, or give this target one of its own.",
            )
        return flowing(*_leading(op, site, rank))

    control = Control(
        before_step=take_turns, after_step=lambda training: integrate(training, tolerance, least)
    )
    return Factorization(
        Rewrite(rewrite),
        each(lambda out, into: rank * (out + into) + 4 * rank**2),
        each(lambda out, into: 2 * rank * (out + into)),
        controls=(control,),
    )
