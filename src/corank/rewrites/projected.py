"""A quantised matrix and a low-rank one beside it, of which one factor is given."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import truncated_svd
from ..models import Site
from ..operators import Dense, Operator, Product, Scaled, Sum
from ..quantizers import Quantizer
from .adapting import trains


def along_gradient(gradient: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The gradient's leading singular vectors on its shorter side.

    As rows (rank, in) where in <= out, as columns (out, rank) otherwise.
    """
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    u, _, vh, _ = truncated_svd(wide, rank, generator=generator)
    return vh if gradient.shape[1] <= gradient.shape[0] else u


def beside_codes(
    weight: Tensor, projection: Tensor, quantizer: Quantizer, site: Site, scale: float, rounds: int
) -> Operator:
    """W -> Q + scale * b P, or Q + scale * P b where P (out, r) is the left factor; b trains.

    P (r, in) or (out, r) is `projection` in codes. In each of `rounds` Q quantises W less the
    product, and b makes good the most that it can of W - Q; the best pair in the Frobenius norm is
    kept. No rounds: Q quantises W, and b is zero.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    held = quantizer(projection.to(weight.dtype), site)
    p = held.dense().to(wide)
    first = p.shape[1] == weight.shape[1]
    inverse = torch.linalg.pinv(p)

    def product(b: Tensor) -> Tensor:
        return scale * (b @ p if first else p @ b)

    coarse = quantizer(weight, site)
    free = torch.zeros_like((wide @ inverse) if first else (inverse @ wide))
    best, least = (coarse, free), float((wide - coarse.dense().to(wide)).norm())
    for _ in range(rounds):
        rest = wide - coarse.dense().to(wide)
        free = (rest @ inverse if first else inverse @ rest) / scale
        lost = float((rest - product(free)).norm())
        if lost < least:
            best, least = (coarse, free), lost
        coarse = quantizer((wide - product(free)).to(weight.dtype), site)
    coarse, free = best
    trained = Dense(trains(free.to(weight.dtype)))
    low = Product(trained, held) if first else Product(held, trained)
    return Sum(coarse, Scaled(low, scale))
