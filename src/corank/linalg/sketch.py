"""Sparse sign embeddings: a random sketch at the price of adding rows."""

from __future__ import annotations

import torch
from torch import Tensor

_COPIES = 4


def sketch_rows(a: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """(width, n) = Omega^T a for a (p, n): each row of a enters 4 rows of the result with a sign.

    Serves a subspace iteration as well as a Gaussian sketch (Martinsson and Tropp 2020, section
    9.2). Rows are dealt in turn from 4 random places, so each is in every copy of the sketch,
    memory is read in order and sums have a fixed order.
    """
    side = a.shape[0]
    result = a.new_zeros(width, a.shape[1])
    shape = (_COPIES, side, 1)
    coins = torch.randint(2, shape, generator=generator, device=generator.device)
    signs = (2 * coins - 1).to(a)
    offsets = torch.randint(width, (_COPIES,), generator=generator, device=generator.device)
    for offset, sign in zip(offsets.tolist(), signs, strict=True):
        start = 0
        while start < side:
            row = (start + offset) % width
            stop = min(start + width - row, side)
            result[row : row + stop - start].addcmul_(a[start:stop], sign[start:stop])
            start = stop
    return result
