"""Weights and second moments that break naive solvers, and the explicit optimum to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = {"tall": (60, 24), "wide": (24, 60), "square": (40, 40)}
GRAMS = ("none", "diagonal", "full", "few_tokens", "deficient", "condition_1e15", "massive", "zero")


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random (rows, columns) with a power-law spectrum, float64."""
    g = draw(seed)
    side = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, side, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, side, generator=g, dtype=torch.float64)).Q
    s = torch.arange(1, side + 1, dtype=torch.float64) ** -0.7
    return (u * s) @ v.T


def gram(kind: str, n: int, seed: int = 1) -> Tensor | None:
    """Second moment (n, n), diagonal (n,), or None, float64."""
    g = draw(seed)
    tokens = {"few_tokens": n // 3}.get(kind, 4 * n)
    x = torch.randn(tokens, n, generator=g, dtype=torch.float64)
    if kind == "none":
        return None
    if kind == "zero":
        return torch.zeros(n, n, dtype=torch.float64)
    if kind == "deficient":
        x[:, n // 2 :] = 0
    elif kind == "condition_1e15":
        basis = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
        values = torch.logspace(0, -15, n, dtype=torch.float64)
        return (basis * values) @ basis.T
    elif kind == "massive":
        x[:, 3] += 3000.0
        x[0, 5] = 2e4
    c = x.T @ x / tokens
    return c.diagonal().clone() if kind == "diagonal" else c


def root(c: Tensor | None, n: int) -> Tensor:
    """Symmetric root (n, n) of c in float64, by one plain eigendecomposition."""
    if c is None:
        return torch.eye(n, dtype=torch.float64)
    full = torch.diag(c) if c.ndim == 1 else c
    values, vectors = torch.linalg.eigh(full.double())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def norm(error: Tensor, c: Tensor | None) -> float:
    """||error C^(1/2)||_F in float64."""
    return float(torch.linalg.matrix_norm(error.double() @ root(c, error.shape[1])))


def optimum(w: Tensor, c: Tensor | None, rank: int) -> tuple[float, float]:
    """Eckart-Young tail of W C^(1/2) at `rank` and its total, by an explicit SVD."""
    s = torch.linalg.svdvals(w.double() @ root(c, w.shape[1]))
    return float(s[rank:].square().sum().sqrt()), float(s.square().sum().sqrt())
