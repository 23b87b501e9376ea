"""Frozen random matrices that sites share: seeds in a file, or the numbers by choice."""

from __future__ import annotations

import hashlib
import math

from ..models import Site
from ..operators import Dense, Operator, Seeded
from .adapting import leaf_dtype


def frozen_random(
    op: Operator,
    site: Site,
    name: str,
    shape: tuple[int, int],
    scale: float,
    law: str = "uniform",
    stored: bool = False,
) -> Seeded | Dense:
    """The random matrix called `name`: the same at every site that asks for this shape and scale.

    stored: as numbers, once for all those sites, in place of a seed.
    """
    drawn = Seeded(shape, shared_seed(site, name), law, scale).to(op.device, leaf_dtype(op))
    if not stored:
        return drawn
    once: Dense = site.pool.setdefault(f"frozen {name} {shape} {scale} {law}", drawn.stored())
    return Dense(once.weight)


def shared_seed(site: Site, name: str) -> int:
    """A seed from the run's and a name, so the same at all sites."""
    digest = hashlib.sha256(f"{site.seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def bound(fan_in: int) -> float:
    """nn.Linear's start: uniform within 1 / sqrt(fan-in)."""
    return 1 / math.sqrt(fan_in)
