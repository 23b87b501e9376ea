"""Second moments of a stream of activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from .symmetric import about_mean

_CHUNK_TOKENS = 1024


@final
class GramAccumulator:
    """Sum of x x^T, sum of x and count over tokens x (n,), added up in float64.

    Products of at most 1024 tokens are computed in `dtype` (float32 or float64) and then added to
    float64 sums, so that rounding does not grow with the number of tokens.
    Memory: 8 n (n + 1) bytes on `device`.
    """

    def __init__(
        self,
        n: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Raises ValueError for n < 1 or a dtype other than float32 and float64."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}")
        self.dtype = dtype
        self.outer_sum = torch.zeros(n, n, dtype=torch.float64, device=device)  # (n, n)
        self.sum = torch.zeros(n, dtype=torch.float64, device=device)  # (n,)
        self.count = torch.zeros((), dtype=torch.float64, device=device)  # tokens, or weights

    def add(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Add tokens x (..., n), each `weights` (...) times (>= 0; default 1).

        Raises ValueError, leaving every sum as it was, for a wrong shape, negative weights, or
        NaN, infinite or (in `dtype`) overflowing values.
        """
        n = self.sum.shape[0]
        if x.shape[-1:] != (n,):
            raise ValueError(f"x must be (..., {n}), got {tuple(x.shape)}")
        if weights is not None and weights.shape != x.shape[:-1]:
            raise ValueError(
                f"weights must be {tuple(x.shape[:-1])} for x {tuple(x.shape)}, "
                f"got {tuple(weights.shape)}"
            )
        tokens = x.detach().reshape(-1, n)
        flat = None if weights is None else weights.detach().reshape(-1)
        if flat is not None and not bool(((flat >= 0) & flat.isfinite()).all()):
            raise ValueError("weights must be finite and >= 0")
        outer, total, count = self._sums(tokens, flat)
        if not bool(torch.isfinite(outer.diagonal()).all()):
            if not bool(torch.isfinite(tokens).all()):
                raise ValueError(
                    "x has NaN or infinite activations; drop the batch or fix the model"
                )
            raise ValueError(f"products of x overflow {self.dtype}; use dtype=torch.float64")
        self.outer_sum += outer
        self.sum += total
        self.count += count

    def second_moment(self) -> Tensor:
        """Mean of x x^T, (n, n) in `dtype`, symmetric. Raises ValueError before any token."""
        self._check_filled()
        return (self.outer_sum / self.count).to(self.dtype)

    def mean(self) -> Tensor:
        """Mean of x, (n,) in `dtype`. Raises ValueError before any token."""
        self._check_filled()
        return (self.sum / self.count).to(self.dtype)

    def covariance(self) -> Tensor:
        """Mean of (x - mean) (x - mean)^T, (n, n) in `dtype`. Raises ValueError before any token.

        The difference is taken in float64, at the rounding of the second moment.
        """
        self._check_filled()
        return about_mean(self.outer_sum / self.count, self.sum / self.count).to(self.dtype)

    def merge(self, other: GramAccumulator) -> None:
        """Add the sums of `other`, as if its tokens had been added here.

        Raises ValueError if the widths differ.
        """
        if other.sum.shape != self.sum.shape:
            raise ValueError(f"widths differ: {self.sum.shape[0]} and {other.sum.shape[0]}")
        for mine, theirs in zip(self.sums(), other.sums(), strict=True):
            mine += theirs.to(mine.device)

    def all_reduce(self, group: Any = None) -> None:
        """Sum over the ranks of a torch.distributed `group` (default: all). Collective."""
        for total in self.sums():
            dist.all_reduce(total, group=group)

    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The state itself, not copies: sum of outer products, sum of tokens, count."""
        return self.outer_sum, self.sum, self.count

    def _sums(self, tokens: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the tokens add. The products of a single chunk stay in `dtype`."""
        outer: Tensor | None = None
        total, count = torch.zeros_like(self.sum), torch.zeros_like(self.count)
        for chunk, share in _chunks(tokens, weights):
            chunk = chunk.to(self.outer_sum.device, self.dtype)
            if share is None:
                count += chunk.shape[0]
                total += chunk.sum(0, dtype=torch.float64)
            else:
                share = share.to(chunk.device, self.dtype)
                # The root splits the weight evenly: the product stays symmetric.
                root = share.sqrt()[:, None]
                count += share.sum(dtype=torch.float64)
                chunk = chunk * root
                total += (chunk * root).sum(0, dtype=torch.float64)
            products = chunk.T @ chunk
            outer = products if outer is None else products + outer.double()
        assert outer is not None
        return outer, total, count

    def _check_filled(self) -> None:
        if not float(self.count) > 0:
            raise ValueError("no tokens were added; the calibration data is empty")


def _chunks(tokens: Tensor, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """At least one, which may be empty."""
    for start in range(0, max(tokens.shape[0], 1), _CHUNK_TOKENS):
        stop = start + _CHUNK_TOKENS
        yield tokens[start:stop], None if weights is None else weights[start:stop]
