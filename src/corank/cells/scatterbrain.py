"""Attention as a sparse part plus a part of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scatterbrain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: int = 64,
    cluster: int = 64,
    rounds: int = 2,
    causal: bool = False,
    seed: int = 0,
) -> Tensor:
    """Softmax attention by random features, corrected exactly where hashing finds large scores.

    exp(q k^T / sqrt(d)) is estimated by positive orthogonal random features, phi(q) phi(k)^T, of
    rank `features`; at the pairs that one of `rounds` hashes puts into one cluster of `cluster`
    queries and keys, the error exp(.) - phi(q) phi(k)^T is added. Every entry is unbiased, and
    exact in the sparse part; clusters of the whole length give softmax attention itself.

    q (..., n, d), k (..., m, d), v (..., m, e) -> (..., n, e). `causal` needs n = m.
    Scatterbrain, arXiv 2110.15343. Raises ValueError for sizes that do not fit.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or q.shape[:-2] != k.shape[:-2]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"scatterbrain: q, k and v of shapes {shapes} do not fit")
    if min(features, cluster, rounds) < 1:
        raise ValueError(
            f"scatterbrain: features={features}, cluster={cluster}, rounds={rounds}: at least 1"
        )
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError("scatterbrain: causal attention needs as many queries as keys")
    draw = torch.Generator().manual_seed(seed)
    q, k = q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25
    w = _orthogonal(features, q.shape[-1], draw).to(q)
    log_q, log_k = _log_features(q, w), _log_features(k, w)
    with torch.no_grad():
        parts, of_q, of_k = _clusters(q, k, cluster, rounds, draw)
        shift_q = log_q.amax(-1, keepdim=True)  # (..., n, 1): cancels in the quotient
        shift_k = log_k.amax((-2, -1), keepdim=True)
        shift_q = torch.maximum(shift_q, _largest(q, k, parts, of_q, of_k, causal) - shift_k)
    phi_q, phi_k = (log_q - shift_q).exp(), (log_k - shift_k).exp()
    ones = torch.cat((v, torch.ones_like(v[..., :1])), -1)  # the last column sums the weights
    total = _prefix(phi_q, phi_k, ones, cluster) if causal else phi_q @ (phi_k.mT @ ones)
    for number, (rows, columns) in enumerate(parts):
        counted = _counted(of_q, of_k, rows, columns, number, causal)
        score = _take(q, rows) @ _take(k, columns).mT  # (..., clusters, queries, keys)
        score = (score - _take(shift_q, rows) - shift_k[..., None]).masked_fill(
            ~counted, -torch.inf
        )
        error = score.exp() - (_take(phi_q, rows) @ _take(phi_k, columns).mT) * counted
        fixed = (error @ _take(ones, columns)).flatten(-3, -2)
        at = rows.flatten(-2).clamp_min(0)[..., None].expand(fixed.shape)
        total = total.scatter_add(-2, at, fixed)
    return total[..., :-1] / total[..., -1:]


def _orthogonal(features: int, size: int, draw: torch.Generator) -> Tensor:
    """Rows in blocks of orthogonal directions, each as long as a normal vector."""
    blocks = []
    for _ in range(math.ceil(features / size)):
        q, r = torch.linalg.qr(torch.randn(size, size, generator=draw))
        blocks.append(q * r.diagonal().sign())  # else Q is not uniform
    lengths = torch.randn(features, size, generator=draw).norm(dim=-1, keepdim=True)
    return torch.cat(blocks)[:features] * lengths


def _log_features(x: Tensor, w: Tensor) -> Tensor:  # (..., n, d), (m, d) -> (..., n, m)
    return x @ w.mT - x.square().sum(-1, keepdim=True) / 2 - math.log(w.shape[0]) / 2


Parts = list[tuple[Tensor, Tensor]]


def _clusters(
    q: Tensor, k: Tensor, size: int, rounds: int, draw: torch.Generator
) -> tuple[Parts, Tensor, Tensor]:
    """Balanced clusters of close queries and keys, and each vector's cluster in every round.

    Both get two coordinates that make their distance fall with their product (as SMYRF has it);
    sorting them by a random projection and cutting gives the clusters. Positions (..., clusters,
    slots), -1 where a slot is empty; (..., n, rounds).
    """
    longest = max(float(q.norm(dim=-1).max()), float(k.norm(dim=-1).max()))
    count = math.ceil(max(q.shape[-2], k.shape[-2]) / size)

    def lifted(x: Tensor, at: int) -> Tensor:
        rest = (longest**2 - x.square().sum(-1)).clamp_min(0).sqrt()
        both = (rest, torch.zeros_like(rest)) if at == 0 else (torch.zeros_like(rest), rest)
        return torch.cat((x, torch.stack(both, -1)), -1)

    parts: Parts = []
    numbers: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(rounds):
        line = torch.randn(q.shape[-1] + 2, generator=draw).to(q)
        pair = []
        for x, at, found in ((q, 0, numbers[0]), (k, 1, numbers[1])):
            order = (lifted(x, at) @ line).argsort(-1)
            slots = math.ceil(x.shape[-2] / count)
            padded = torch.nn.functional.pad(order, (0, slots * count - x.shape[-2]), value=-1)
            pair.append(padded.unflatten(-1, (count, slots)))
            found.append(order.argsort(-1) // slots)
        parts.append((pair[0], pair[1]))
    return parts, torch.stack(numbers[0], -1), torch.stack(numbers[1], -1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """The rows of x (..., n, d) at index (..., clusters, slots): (..., clusters, slots, d)."""
    flat = index.flatten(-2).clamp_min(0)[..., None].expand(*x.shape[:-2], -1, x.shape[-1])
    return x.gather(-2, flat).unflatten(-2, index.shape[-2:])


def _counted(
    of_q: Tensor, of_k: Tensor, rows: Tensor, columns: Tensor, number: int, causal: bool
) -> Tensor:
    """Which pairs of a round count: real ones that no earlier round had."""
    counted = (rows >= 0)[..., :, None] & (columns >= 0)[..., None, :]
    if causal:
        counted = counted & (columns[..., None, :] <= rows[..., :, None])
    if number:
        one = _take(of_q[..., :number], rows)[..., :, None, :]
        counted = counted & (one != _take(of_k[..., :number], columns)[..., None, :, :]).all(-1)
    return counted


def _largest(
    q: Tensor, k: Tensor, parts: Parts, of_q: Tensor, of_k: Tensor, causal: bool
) -> Tensor:
    """The greatest exact score of each query, (..., n, 1)."""
    best = torch.full_like(q[..., 0], -torch.inf)
    for number, (rows, columns) in enumerate(parts):
        score = _take(q, rows) @ _take(k, columns).mT
        hidden = ~_counted(of_q, of_k, rows, columns, number, causal)
        top = score.masked_fill(hidden, -torch.inf).amax(-1).flatten(-2)
        best = best.scatter_reduce(-1, rows.flatten(-2).clamp_min(0), top, "amax")
    return best[..., None]


def _prefix(phi_q: Tensor, phi_k: Tensor, v: Tensor, size: int) -> Tensor:
    """phi_q phi_k^T v over the keys up to each query, by runs of `size`."""
    state = phi_k.new_zeros(*phi_k.shape[:-2], phi_k.shape[-1], v.shape[-1])
    out = []
    for a, b, c in zip(
        phi_q.split(size, -2), phi_k.split(size, -2), v.split(size, -2), strict=True
    ):
        out.append(a @ state + (a @ b.mT).tril() @ c)
        state = state + b.mT @ c
    return torch.cat(out, -2)
