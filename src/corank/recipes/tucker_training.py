"""Convolutions that stay of low Tucker rank while they train."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..control import Control
from ..control.tucker_flow import flowing, hosvd, integrate, take_turns
from ..models import Site
from ..operators import Operator
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, require_rank


def _ranks(sizes: Sequence[int], rank: int) -> tuple[int, ...]:
    return (*(min(rank, size) for size in sizes[:2]), *sizes[2:])


def _trained(site: Site, rank: int) -> tuple[int, int]:
    """Numbers that train, and frozen ones."""
    sizes = site.modes
    ranks = _ranks(sizes, rank)
    inner = [min(r, prod(ranks) // r) for r in ranks]
    room = [min(q, n - r) for q, n, r in zip(inner, sizes, ranks, strict=True)]
    trained = prod(r + more for r, more in zip(ranks, room, strict=True))
    frozen = sum(n * (r + more) for n, r, more in zip(sizes, ranks, room, strict=True))
    for size, rank_, q, more in zip(sizes, ranks, inner, room, strict=True):
        if more:
            trained += size * q
            frozen += q * prod(ranks) // rank_
    return trained, frozen


@method(
    Paper(
        "Rank-adaptive spectral pruning of convolutional layers during training",
        "2305.19059",
        "the abstract; the integrator is the known one for Tucker tensors, a K-step for each mode, "
        "then the core's step and its truncation; its algorithm was not read here",
        "all K-steps come from one gradient; they and the core's step are optimiser steps of their "
        "own, in turns; the tolerance is each mode's share; the start is the weight's higher-order "
        "SVD, of that rank in the two channel modes and whole in the taps; a linear layer is a "
        "tensor of two modes",
    ),
    area="train",
    laws=("factorization", "from_w", "moves_frozen", "changes_shape"),
)
def tucker_dlrt(rank: int = 64, tolerance: float = 0.1, least: int = 2) -> Factorization:
    """A Tucker tensor whose bases are extended by a step for each mode, then cut with its core.

    rank: of both channel modes at the start. tolerance: the share of the core's norm, 0 to 1, that
    may be cut from each mode; least: ranks of a mode that stay. At the planned end, if the
    controller knows it, each weight becomes a plain Tucker tensor.
    """
    if not 0 <= tolerance < 1 or least < 1:
        raise ValueError(f"tolerance={tolerance}, least={least}: within [0, 1), and at least 1")

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        sizes = site.modes
        tensor = op.dense().detach().to(leaf_dtype(op)).reshape(sizes)
        return flowing(*hosvd(tensor, _ranks(sizes, rank)))

    control = Control(
        before_step=take_turns, after_step=lambda training: integrate(training, tolerance, least)
    )
    return Factorization(
        Rewrite(rewrite),
        lambda sites: sum(_trained(site, rank)[0] for site in sites),
        lambda sites: sum(_trained(site, rank)[1] for site in sites),
        controls=(control,),
    )
