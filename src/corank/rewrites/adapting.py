"""W -> W': rewrites that keep the weight and put something trainable beside it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SiteError
from ..models import Site
from ..operators import Dense, LowRank, Operator, Product, Scaled, Sum
from .rewrite import Rewrite

#: What is put beside a weight, of its shape.
Delta = Callable[[Operator, Site], Operator]


def plus(delta: Delta, scale: float = 1.0, needs: frozenset[str] = frozenset()) -> Rewrite:
    """W -> W + scale * delta."""

    def rewrite(op: Operator, site: Site) -> Operator:
        added = delta(op, site)
        return Sum(op, added if scale == 1 else Scaled(added, scale))

    return Rewrite(rewrite, needs)


def split(part: Delta, needs: frozenset[str] = frozenset(), scale: float = 1.0) -> Rewrite:
    """W -> (W - P) + P with P = scale * part: the function is unchanged, and so is W.

    Kept as W - P0 + P with the start P0 frozen, so that no residual is stored or rounded. The
    leaves of `part` that do not train are held once.
    """

    def rewrite(op: Operator, site: Site) -> Operator:
        start = part(op, site)
        once: dict[int, Any] = {id(p): p for p in start.parameters() if not p.requires_grad}
        frozen = copy.deepcopy(start, once).requires_grad_(False)
        added = start if scale == 1 else Scaled(start, scale)
        return Sum(op, Scaled(frozen, -scale), added)

    return Rewrite(rewrite, needs)


def between(b: Tensor, core: Tensor, a: Tensor, scale: float = 1.0) -> Operator:
    """scale * b core a, for a small core between factors."""
    left = LowRank(b, core)
    return Product(left if scale == 1 else Scaled(left, scale), Dense(a))


def zero_low_rank(rank: int, gated: bool = False) -> Callable[[Operator, Site], LowRank]:
    """b a of that rank, trainable: a kaiming-uniform, b zero (LoRA's start; reversed at an
    embedding, whose a is zero and whose b is normal, as in PEFT)."""

    def delta(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        out, into = op.shape
        b, a = zeros(op, out, rank), kaiming(op, site, rank, into)
        if site.kind == "embedding":
            b, a = normal(op, site, out, rank), zeros(op, rank, into)
        gate = trains(torch.ones(rank)) if gated else None
        return LowRank(b, a, gate)

    return delta


def require_rank(rank: int, site: Site) -> None:
    """Refuse a rank that is no rank of the site."""
    if not 1 <= rank <= min(site.shape):
        raise SiteError(
            site.where,
            f"rank {rank} is outside 1 to {min(site.shape)}",
            "Ask for a rank in that range, or give this target one of its own: "
            "targets={'name': {'rank': ...}}.",
        )


def leaf_dtype(op: Operator) -> torch.dtype:
    """What an adapter's leaves are kept in: float32 over half precision, as PEFT does."""
    return torch.float32 if op.dtype in (torch.float16, torch.bfloat16) else op.dtype


def trains(tensor: Tensor) -> nn.Parameter:
    """A leaf that trains, laid out as a file holds it, so that a reload computes the same bits."""
    return nn.Parameter(tensor.contiguous())


def zeros(op: Operator, *shape: int) -> nn.Parameter:
    """A trainable leaf of zeros, in the adapter's dtype and on the weight's device."""
    return trains(torch.zeros(*shape, dtype=leaf_dtype(op), device=op.device))


def ones(op: Operator, *shape: int) -> nn.Parameter:
    """A trainable leaf of ones."""
    return full(op, 1.0, *shape)


def full(op: Operator, value: float, *shape: int) -> nn.Parameter:
    """A trainable leaf of one value."""
    return trains(torch.full(shape, value, dtype=leaf_dtype(op), device=op.device))


def normal(op: Operator, site: Site, *shape: int, std: float = 1.0) -> nn.Parameter:
    """A trainable leaf of normal numbers, drawn from the site's generator."""
    drawn = torch.randn(*shape, generator=site.draws()) * std
    return trains(drawn.to(op.device, leaf_dtype(op)))


def kaiming(op: Operator, site: Site, *shape: int) -> nn.Parameter:
    """A trainable leaf, uniform within 1 / sqrt(fan-in): nn.Linear's start, drawn by the site."""
    return uniform(op, site, *shape, bound=1 / math.sqrt(shape[-1]))


def uniform(op: Operator, site: Site, *shape: int, bound: float) -> nn.Parameter:
    """A trainable leaf of numbers uniform within +-bound, drawn from the site's generator."""
    drawn = torch.rand(*shape, generator=site.draws()) * (2 * bound) - bound
    return trains(drawn.to(op.device, leaf_dtype(op)))
