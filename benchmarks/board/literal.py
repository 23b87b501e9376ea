"""The SVD-LLM recipe done literally: Cholesky whitening, full SVD, explicit inverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corank.models import Site, install, read
from corank.operators import LowRank


def compress_literally(model: nn.Module, sites: Sequence[Site], keep: float) -> int:
    """Truncate every site in place at the uniform rank; returns the numbers that they then store.

    sites: linear ones with `stats["gram"]`. A second moment that Cholesky refuses is shifted by
    its lowest eigenvalue, as the recipe's published code does.
    """
    stored = 0
    for site in sites:
        out, into = site.shape
        rank = max(1, int(keep * out * into / (out + into)))
        operator = LowRank(*factorise(read(model, site).dense().detach(), site.stat("gram"), rank))
        install(model, site, operator, None)
        stored += operator.numel()
    return stored


def factorise(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """b (m, rank) and a (rank, n) of arXiv 2403.07378, from W (m, n) and E[x x^T] (n, n)."""
    root = _cholesky(moment.double())
    u, s, vh = torch.linalg.svd(weight @ root.float(), full_matrices=False)
    half = s[:rank].sqrt()
    return u[:, :rank] * half, (half[:, None] * vh[:rank]) @ torch.linalg.inv(root).float()


def _cholesky(moment: Tensor) -> Tensor:
    root, failed = torch.linalg.cholesky_ex(moment)
    if failed:
        lowest = torch.linalg.eigvalsh(moment)[0]
        shift = (-lowest + 1e-6) * torch.eye(len(moment), dtype=moment.dtype)
        root = torch.linalg.cholesky(moment + shift)
    return root
