"""Which entries of a matrix stay, by patterns that hardware knows."""

from __future__ import annotations

import torch
from torch import Tensor


def n_of_m(size: Tensor, n: int, m: int) -> Tensor:
    """Where the `n` largest of every `m` neighbours in a row stand: bool of the shape of `size`.

    size: (rows, columns), with columns a multiple of m; of equals the first stay.
    Raises ValueError for other shapes, or an n outside 1 to m.
    """
    if not 1 <= n <= m or size.shape[1] % m:
        raise ValueError(f"{n} of every {m} does not fit rows of {size.shape[1]}")
    groups = size.unflatten(1, (-1, m))
    order = groups.argsort(dim=2, descending=True, stable=True)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter(2, order[..., :n], True)
    return kept.flatten(1)
