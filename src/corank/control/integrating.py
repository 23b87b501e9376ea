"""Weights that stay of low rank by integrating their flow: K and L, then S, then truncation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..operators import BlockColumns, BlockRows, Dense, LowRank, Operator, Product, Sum
from .conditioned import matrix, orthonormal, wide
from .control import Training
from .replacing import replace


class Flow(NamedTuple):
    """The leaves of [U U'] S [V; V'] + K V + U L: U, V and what is added to them are frozen."""

    u: nn.Parameter  # (out, r), orthonormal
    more_u: nn.Parameter  # (out, r), orthonormal and apart from u, or zero
    s: nn.Parameter  # (2 r, 2 r)
    v: nn.Parameter  # (r, in)
    more_v: nn.Parameter  # (r, in)
    k: nn.Parameter  # (out, r), what K = U S has moved by
    l: nn.Parameter  # noqa: E741 (r, in), what L = S V has moved by


def flowing(u: Tensor, values: Tensor, v: Tensor) -> Operator:
    """The operator of `Flow` at U diag(values) V, for orthonormal u (out, r) and v (r, in)."""
    rank = len(values)
    u, v = u.contiguous(), v.contiguous()
    shared_u, shared_v = (nn.Parameter(x, requires_grad=False) for x in (u, v))
    s = torch.zeros(2 * rank, 2 * rank, dtype=u.dtype, device=u.device)
    s.diagonal()[:rank] = values
    middle = Product(
        BlockColumns(Dense(shared_u), Dense(torch.zeros_like(u))),
        Dense(nn.Parameter(s)),
        BlockRows(Dense(shared_v), Dense(torch.zeros_like(v))),
    )
    k = LowRank(nn.Parameter(torch.zeros_like(u)), shared_v)
    return Sum(middle, k, LowRank(shared_u, nn.Parameter(torch.zeros_like(v))))


def flow(op: Operator) -> Flow:
    """The leaves of an operator that `flowing` made."""
    assert isinstance(op, Sum)
    middle, k, l = op.operators  # noqa: E741
    assert isinstance(middle, Product)
    left, s, right = middle.operators
    assert isinstance(left, BlockColumns)
    assert isinstance(right, BlockRows)
    assert isinstance(k, LowRank)
    assert isinstance(l, LowRank)
    (u, more_u), (v, more_v) = (map(matrix, part.operators) for part in (left, right))
    return Flow(u, more_u, matrix(s), v, more_v, k.b, l.a)


def take_turns(training: Training) -> None:
    """Before a step: of every two steps, the first moves K and L and the second S."""
    for op in training.operators.values():
        if isinstance(op, Sum):
            parts = flow(op)
            for leaf in (parts.s,) if training.step % 2 == 0 else (parts.k, parts.l):
                leaf.grad = None


def integrate(training: Training, tolerance: float, least: int) -> None:
    """After a step: add K's and L's new directions to the bases, or cut what S does not need.

    At the planned end each weight becomes a plain low-rank product.
    """
    for site, op in list(training.operators.items()):
        if not isinstance(op, Sum):
            continue
        parts = flow(op)
        if training.total is not None and training.step >= training.total:
            if training.step % 2 == 0:
                parts = flow(_truncated(training, site, parts, tolerance, least))
            core = parts.s[: parts.v.shape[0], : parts.v.shape[0]]
            replace(
                training,
                site,
                LowRank(nn.Parameter(wide(parts.u) @ wide(core)), nn.Parameter(parts.v)),
            )
        elif training.step % 2:
            _extend(parts)
        else:
            _truncated(training, site, parts, tolerance, least)


def _extend(parts: Flow) -> None:
    """U' and V' become what K and L hold beside U and V; the weight is U S V as before."""
    rank = parts.v.shape[0]
    u = orthonormal(torch.cat((parts.u, parts.k), 1))
    v = orthonormal(torch.cat((parts.v, parts.l)).mT).mT
    for leaf, value in (
        (parts.u, u[:, :rank]), (parts.more_u, u[:, rank:]),
        (parts.v, v[:rank]), (parts.more_v, v[rank:]),
    ):  # fmt: skip
        leaf.copy_(value)
    parts.k.zero_()
    parts.l.zero_()


def _truncated(
    training: Training, site: str, parts: Flow, tolerance: float, least: int
) -> Operator:
    """The weight with the fewest ranks that keep all but `tolerance` of S's norm."""
    p, values, q = torch.linalg.svd(wide(parts.s))
    rank, most = parts.v.shape[0], min(training.operators[site].shape) // 2
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()  # (2 r,): the norm from each on
    kept = int((tails > tolerance * tails[0]).sum())
    kept = max(min(kept, most, len(values)), min(least, rank))
    u = wide(torch.cat((parts.u, parts.more_u), 1)) @ p[:, :kept]
    v = q[:kept] @ wide(torch.cat((parts.v, parts.more_v)))
    if kept != rank:
        dtype = parts.s.dtype
        replace(training, site, flowing(u.to(dtype), values[:kept].to(dtype), v.to(dtype)))
        return training.operators[site]
    parts.u.copy_(u)
    parts.v.copy_(v)
    parts.s.copy_(torch.diag(torch.cat((values[:kept], torch.zeros_like(values[kept:])))))
    parts.more_u.zero_()
    parts.more_v.zero_()
    return training.operators[site]
