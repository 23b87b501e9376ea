"""What one call of a module adds to the gradient of its weight, sample by sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from ..errors import SiteError
from ..models import Site
from .rows import geometry_of, patches


class Contribution(ABC):
    """The inputs of one call, and, once the backward pass has come by, its output's gradient."""

    gradient: Tensor

    @abstractmethod
    def of(self, sample: int) -> Tensor:
        """The sum over the sample's rows of g x^T, as the canonical matrix (m, n), float32."""

    @abstractmethod
    def weighted_rows(self, weights: Sequence[float]) -> Tensor:
        """The gradients g (rows, m), each times the weight of its sample."""


@final
class _Linear(Contribution):
    def __init__(self, x: Tensor, samples: int) -> None:
        self.x = x.reshape(samples, -1, x.shape[-1])  # (B, rows, n)

    def of(self, sample: int) -> Tensor:
        g = self.gradient.reshape(self.x.shape[0], -1, self.gradient.shape[-1])[sample]
        return g.float().T @ self.x[sample].float()

    def weighted_rows(self, weights: Sequence[float]) -> Tensor:
        return _weighted(self.gradient, weights)


@final
class _Convolution(Contribution):
    def __init__(self, x: Tensor, module: nn.Module) -> None:
        self.x, self.geometry = x, geometry_of(module)

    def of(self, sample: int) -> Tensor:
        g = self.gradient[sample].flatten(1).float()  # (m, positions)
        parts: list[Tensor] = []
        start = 0
        for rows in patches(self.x[sample : sample + 1], self.geometry):
            parts.append(g[:, start : start + rows.shape[0]] @ rows.float())
            start += rows.shape[0]
        return sum(parts[1:], parts[0])

    def weighted_rows(self, weights: Sequence[float]) -> Tensor:
        return _weighted(self.gradient.flatten(2).transpose(1, 2), weights)


@final
class _LookUp(Contribution):
    def __init__(self, ids: Tensor, module: nn.Module, shape: tuple[int, int], n: int) -> None:
        self.ids, self.shape = ids.reshape(n, -1), shape
        self.scale = getattr(module, "embed_scale", None)
        self.padding = getattr(module, "padding_idx", None)

    def of(self, sample: int) -> Tensor:
        g = self.gradient.reshape(*self.ids.shape, -1)[sample].float()
        if self.scale is not None:
            g = g * self.scale
        if self.padding is not None:
            g = g * (self.ids[sample] != self.padding)[:, None]
        return g.new_zeros(self.shape).index_add(0, self.ids[sample], g)

    def weighted_rows(self, weights: Sequence[float]) -> Tensor:
        return _weighted(self.gradient, weights)


@final
class _Expert(Contribution):
    def __init__(self, x: Tensor, owner: Tensor) -> None:
        self.x, self.owner = x, owner  # (rows, n), (rows,): the sample of each row

    def of(self, sample: int) -> Tensor:
        mine = self.owner == sample
        return self.gradient[mine].float().T @ self.x[mine].float()

    def weighted_rows(self, weights: Sequence[float]) -> Tensor:
        each = torch.tensor(weights, device=self.owner.device)[self.owner]
        return self.gradient.float() * each[:, None]


def at_module(site: Site, module: nn.Module, x: Tensor, samples: int) -> Contribution:
    """The contribution of a call of a plain module, or of corank's layer in its place.

    Raises: SiteError where the rows of x cannot be told apart by sample.
    """
    if hasattr(module, "num_embeddings"):
        _require_samples(site, x.shape, samples)
        return _LookUp(x, module, site.shape, samples)
    if site.kind == "conv":
        _require_samples(site, x.shape, samples)
        return _Convolution(x, module)
    if x.ndim != 2 or x.shape[0] % samples:
        _require_samples(site, x.shape, samples)
    return _Linear(x, samples)


def at_expert(site: Site, x: Tensor, token: Tensor, tokens: int, samples: int) -> Contribution:
    """The contribution of one expert's rows: x (rows, n), from the given of `tokens` tokens."""
    if tokens % samples:
        _require_samples(site, torch.Size([tokens]), samples)
    return _Expert(x, token // (tokens // samples))


def _require_samples(site: Site, shape: torch.Size, samples: int) -> None:
    if samples != 1 and shape[0] != samples:
        raise SiteError(
            site.where,
            f"its input of shape {tuple(shape)} is not divided into the batch's {samples} samples",
            "Calibrate with batches of one sample (batch_size=1) for loss-based statistics",
        )


def _weighted(gradient: Tensor, weights: Sequence[float]) -> Tensor:
    g = gradient.reshape(len(weights), -1, gradient.shape[-1]).float()  # (B, rows, m)
    scales = torch.tensor(weights, device=g.device)
    return (g * scales[:, None, None]).flatten(0, 1)
