from __future__ import annotations

from ..models import Site
from ..operators import Operator, quantise_uniform
from .rewrite import Rewrite


def round_to_nearest(bits: int = 4, group: int = 64) -> Rewrite:
    """W -> Q: codes of `bits` (2 to 8) with a scale and a zero point for each `group` numbers."""

    def apply(op: Operator, site: Site) -> Operator:
        return quantise_uniform(op.dense().detach(), bits, group, symmetric=False)

    return Rewrite(apply)
