"""Which adapter each row of a batch goes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor


@final
class Selection:
    """Row i of a batch goes through the adapter `names[i]`; None is no adapter.

    `inside` is true while the model's own forward runs on a batch of that many rows: tokens that
    a layer gets flattened to (rows * length, width) are then known to belong to those rows.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = tuple(names)
        self.inside = False
        self._rows: Tensor | None = None

    def require_batch(self, size: int) -> None:
        """Raises ValueError for a batch of another number of rows."""
        if size != len(self.names):
            raise ValueError(f"{len(self.names)} adapters were selected for a batch of {size}")

    @contextmanager
    def of_tokens(self, token: Tensor, count: int) -> Iterator[None]:
        """A block in which layers get those of `count` tokens of the whole batch."""
        if count % len(self.names):
            raise ValueError(f"{len(self.names)} adapters were selected for {count} tokens")
        self._rows = token // (count // len(self.names))
        try:
            yield
        finally:
            self._rows = None

    def parts(self, x: Tensor) -> Iterator[tuple[str | None, Tensor, Tensor]]:
        """(name, that adapter's share of x, where it came from) for each adapter in use.

        What is one for all rows, as position ids are, is first repeated for each.
        """
        each = 1
        if self._rows is None:
            x, each = self._aligned(x)
        for name in dict.fromkeys(self.names):
            own = [i for i, other in enumerate(self.names) if other == name]
            mine = torch.tensor(own, device=x.device)
            if self._rows is None:
                where = (mine[:, None] * each + torch.arange(each, device=x.device)).flatten()
            else:
                where = torch.isin(self._rows, mine).nonzero()[:, 0]
            if len(where):
                yield name, x[where], where

    def _aligned(self, x: Tensor) -> tuple[Tensor, int]:
        """x with all rows of the batch, and how many of its own each of those has."""
        count = len(self.names)
        if x.shape[0] == 1:
            x = x.expand(count, *x.shape[1:])
        flat = self.inside and x.ndim == 2 and x.is_floating_point() and x.shape[0] % count == 0
        each = x.shape[0] // count if flat else 1
        self.require_batch(x.shape[0] // each)
        return x, each
