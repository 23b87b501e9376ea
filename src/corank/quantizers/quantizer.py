from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import Site
from ..operators import Operator


@dataclass(frozen=True)
class Quantizer:
    """`quantizer(weight, site)` is a matrix (out, in) as an operator of few bits.

    It reads the statistics in `needs` only. `counts(shape, dtype)` are the numbers and the bytes
    that it stores for a weight of that shape and dtype, known without weights. `rows`, if there is
    one, takes as many bytes for the numbers (out, n) that a sparse matrix has in each row, at
    columns (out, n) of its input.
    """

    apply: Callable[[Tensor, Site], Operator]
    counts: Callable[[tuple[int, int], torch.dtype], tuple[int, int]]
    needs: frozenset[str] = frozenset()
    rows: Callable[[Tensor, Tensor, Site], Operator] | None = None

    def __call__(self, weight: Tensor, site: Site) -> Operator:
        return self.apply(weight, site)
