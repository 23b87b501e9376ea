from __future__ import annotations

from dataclasses import replace

from ..metrics import euclidean
from ..operators import Operator
from .adapting import zero_low_rank
from .rewrite import Family, Unit
from .truncation import truncation


def fresh() -> Family:
    """W -> b a with b zero, as LoRA starts: nothing yet, but for training to fill.

    Its menu is that of the best b a, which training can at most reach.
    """

    def build(unit: Unit, rank: int) -> list[Operator]:
        return [
            zero_low_rank(rank)(op, site).to(op.dtype)
            for site, op in zip(unit.sites, unit.ops, strict=True)
        ]

    return replace(truncation(euclidean()), build=build)
