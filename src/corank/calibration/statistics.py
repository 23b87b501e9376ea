"""Running sums over the inputs of a site."""

from __future__ import annotations

from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from ..linalg import GramAccumulator

#: What a pass without gradients can gather.
INPUT_NEEDS = frozenset(
    ["gram", "mean", "abs_mean", "abs_max", "square_mean", "row_counts", "tokens", "output_cosines"]
)
#: What needs a loss and a backward pass.
LOSS_NEEDS = frozenset({"fisher", "gradient", "output_gram"})

_CHUNK = 4096


@final
class InputStatistics:
    """The statistics of one input, shared by all sites that read it. Sums are float64.

    gram: E[x x^T] (n, n); mean: E[x] (n,); abs_mean: E|x| (n,); square_mean: E[x^2] (n,);
    abs_max: max|x| (n,).
    rows: rows x (n,) added so far; calls: how often rows were added.
    """

    def __init__(self, n: int, needs: frozenset[str], device: torch.device) -> None:
        self.needs = needs
        self.rows = torch.zeros((), dtype=torch.float64, device=device)
        self.calls = 0
        self.gram = GramAccumulator(n, device) if "gram" in needs else None
        self.sums = {
            name: torch.zeros(n, dtype=torch.float64, device=device)
            for name in ("mean", "abs_mean", "square_mean")
            if name in needs
        }
        self.largest = torch.zeros(n, device=device) if "abs_max" in needs else None

    def add(self, rows: Tensor) -> None:
        """Add finite `rows` (R, n)."""
        self.calls += 1
        self.rows += rows.shape[0]
        if self.gram is not None:
            self.gram.add(rows)
        if self.largest is not None and len(rows):
            self.largest = torch.maximum(self.largest, rows.abs().amax(0).float())
        exact = rows.double() if self.sums else rows
        if "mean" in self.sums:
            self.sums["mean"] += exact.sum(0)
        if "abs_mean" in self.sums:
            self.sums["abs_mean"] += exact.abs().sum(0)
        if "square_mean" in self.sums:
            self.sums["square_mean"] += exact.square().sum(0)

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed. Collective."""
        for total in (self.rows, *self.sums.values()):
            dist.all_reduce(total)
        if self.largest is not None:
            dist.all_reduce(self.largest, dist.ReduceOp.MAX)
        if self.gram is not None:
            self.gram.all_reduce()

    def results(self) -> dict[str, Tensor | float]:
        """The statistics asked for, float32, and "tokens", the rows behind them."""
        found: dict[str, Tensor | float] = {"tokens": float(self.rows)}
        if self.gram is not None:
            found["gram"] = self.gram.second_moment()
        if self.largest is not None:
            found["abs_max"] = self.largest
        for name, total in self.sums.items():
            found[name] = (total / self.rows).float()
        return found


@final
class RowCounts:
    """How often each row of an embedding (vocab, dim) was looked up; its x is one-hot."""

    def __init__(self, vocab: int, needs: frozenset[str], device: torch.device) -> None:
        self.needs = needs
        self.calls = 0
        self.counts = torch.zeros(vocab, dtype=torch.float64, device=device)

    @property
    def rows(self) -> Tensor:
        return self.counts.sum()

    def add(self, ids: Tensor) -> None:
        """Add token ids (R,)."""
        self.calls += 1
        self.counts += torch.bincount(ids, minlength=self.counts.shape[0])

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed. Collective."""
        dist.all_reduce(self.counts)

    def results(self) -> dict[str, Tensor | float]:
        """ "row_counts" (vocab,), "tokens", and the means of the one-hot x, where asked for."""
        found: dict[str, Tensor | float] = {"tokens": float(self.rows)}
        found["row_counts"] = self.counts.float()
        for name in self.needs & {"mean", "abs_mean", "square_mean"}:
            found[name] = (self.counts / self.rows).float()
        if "abs_max" in self.needs:
            found["abs_max"] = (self.counts > 0).float()
        return found


@final
class CrossMoment:
    """E[t x^T] (m, n) and E[t] (m,) over pairs of rows. Sums are float64.

    Products are in float32, or in float64 for rows of that type.
    """

    def __init__(self, m: int, n: int, device: torch.device) -> None:
        self.products = torch.zeros(m, n, dtype=torch.float64, device=device)
        self.total = torch.zeros(m, dtype=torch.float64, device=device)
        self.rows = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, wanted: Tensor, x: Tensor) -> None:
        """Add rows t (R, m) and x (R, n)."""
        dtype = torch.promote_types(torch.promote_types(wanted.dtype, x.dtype), torch.float32)
        for part, other in zip(wanted.split(_CHUNK), x.split(_CHUNK), strict=True):
            self.products += part.to(dtype).T @ other.to(dtype)
        self.total += wanted.double().sum(0)
        self.rows += x.shape[0]

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed. Collective."""
        for total in (self.products, self.total, self.rows):
            dist.all_reduce(total)

    def results(self) -> tuple[Tensor, Tensor]:
        """Both means, float32."""
        return (self.products / self.rows).float(), (self.total / self.rows).float()
