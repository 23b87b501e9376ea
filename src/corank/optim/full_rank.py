"""Methods whose update has full rank while their state has not: Fira, APOLLO, FRUGAL."""

from __future__ import annotations

import math
from typing import Literal

from ..errors import unknown
from ..registry import Paper, method
from .bases import BASES, seeded
from .conjugate import Carry, conjugate
from .galore import inner_of, require_basis
from .inner import adam
from .lifting import added, rescaled, rescaled_rest, signed
from .refreshing import at_most, require_at_least, share
from .refreshing import every as each
from .transform import Transform

_LAWS = ("gradient",)


@method(
    Paper(
        "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?",
        "2410.01623",
        "norm-based scaling by columns and the norm-growth limiter",
        "the residual is not multiplied by the scale, as in the paper, unlike the code; "
        "the limiter sees Adam's direction with bias correction; basis, moments and refreshes as "
        "`galore` has them",
    ),
    area="optimize",
    laws=_LAWS,
)
def fira(
    rank: int = 128,
    every: int = 200,
    scale: float = 0.25,
    growth: float = 1.01,
    basis: str = "randomized",
    inner: str = "adam",
    carry: Carry = "rotate",
    stagger: bool = True,
) -> Transform:
    """GaLore plus the rest of the gradient, its columns scaled as Adam scales the projected."""
    require_basis(basis)
    require_at_least(1, growth=growth)
    found = BASES[basis](at_most(rank), each(every, stagger))
    return conjugate(inner_of(inner), found, rescaled_rest(scale, growth), carry)


@method(
    Paper(
        "APOLLO: SGD-like Memory, AdamW-level Performance",
        "2412.05270",
        "channel- or tensor-wise scaling from a random projection; APOLLO-Mini is rank=1, "
        "by='tensor', scale=128",
        "the projection is drawn anew from its seed at each step and is not stored; the moments "
        "stay as they are when it changes; refreshes are staggered",
    ),
    area="optimize",
    laws=_LAWS,
)
def apollo(
    rank: int = 256,
    every: int = 200,
    scale: float = 1.0,
    by: Literal["channel", "tensor"] = "channel",
    growth: float = 1.01,
    stagger: bool = True,
) -> Transform:
    """The gradient itself, its channels scaled as Adam scales them in a random small space.

    scale: the update is multiplied by its square root.
    """
    if by not in ("channel", "tensor"):
        raise unknown("scaling", by, ("channel", "tensor"))
    require_at_least(0, scale=scale)
    require_at_least(1, growth=growth)
    lift = rescaled(math.sqrt(scale), growth, by == "channel")
    return conjugate(adam(), seeded(at_most(rank), each(every, stagger)), lift, "keep")


_REST = {"sign": signed, "sgd": added}


@method(
    Paper(
        "FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
        "2411.07837",
        "algorithm 1 with Adam inside and signSGD (or SGD) outside",
        "the projected directions are found by subspace iteration by default (basis='svd', "
        "'random', 'random_rows' are the paper's); whole blocks of layers are not chosen; moments "
        "are reset with each new basis, bias correction with them",
    ),
    area="optimize",
    laws=_LAWS,
)
def frugal(
    density: float = 0.25,
    every: int = 200,
    rest: str = "sign",
    rest_scale: float = 1.0,
    basis: str = "randomized",
    carry: Carry = "reset",
    stagger: bool = True,
) -> Transform:
    """Adam in a share of the directions, the sign of the gradient in all others.

    density: the share of each matrix's shorter side. rest_scale: the step outside over that inside.
    """
    require_basis(basis)
    if rest not in _REST:
        raise unknown("rule for the rest", rest, _REST)
    found = BASES[basis](share(density), each(every, stagger))
    return conjugate(adam(), found, _REST[rest](rest_scale), carry)
