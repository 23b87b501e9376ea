"""Tensors as chains of cores (tensor trains), of one's own or with one core in common."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .checks import check_finite, working_dtype
from .metric import in_range
from .svd import truncated_svd


def bond_sizes(modes: Sequence[int], rank: int) -> list[int]:
    """The sizes of a train's bonds, the outer ones included: `rank`, or less where all fits in."""
    return [min(rank, prod(modes[:k]), prod(modes[k:])) for k in range(len(modes) + 1)]


def tensor_train(a: Tensor, rank: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Cores (left, n_k, right) whose chained product is near a (n_0, n_1, ...), bonds <= rank.

    By successive truncated SVDs: of an error at most sqrt(modes - 1) times the least, none where
    the bonds are full. The singular values go into the last core. Half precisions are computed in
    float32. Raises ValueError for a rank below 1 or entries that are not finite.
    """
    check_finite(a, "a")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    rest, left, cores = a.to(working_dtype(a)), 1, []
    for n in a.shape[:-1]:
        matrix = rest.reshape(left * n, -1)
        bond = min(rank, *matrix.shape)
        u, s, vh, _ = truncated_svd(matrix, bond, generator=generator)
        cores.append(u.reshape(left, n, bond))
        rest, left = s[:, None] * vh, bond
    return [*cores, rest.reshape(left, a.shape[-1], 1)]


def common_center(
    a: Tensor, rank: int, steps: int = 10, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Tensor trains of L tensors of one shape that have their middle core in common.

    a (L, n_0, n_1, ...), of an odd number of modes. Returns a core (L, left, n_k, right) for each
    mode, and the middle one as (1, left, n_k, right); bonds <= rank. Starts as the train of
    the largest tensor, then goes through the cores `steps` times: each one of the outer cores
    becomes the least-squares one, and the middle one takes a few steps of conjugate gradients, so
    that the error never grows. Half precisions are computed in float32.

    Raises ValueError for an even number of modes, a rank below 1 or entries that are not finite.
    """
    check_finite(a, "a")
    a, scale = in_range(a.to(working_dtype(a)))
    count, *modes = a.shape
    middle = len(modes) // 2
    if len(modes) % 2 == 0:
        raise ValueError(f"a middle core needs an odd number of modes, got {len(modes)}")
    largest = a.flatten(1).norm(dim=1).argmax()
    start = tensor_train(a[largest], rank, generator)
    cores = [core.expand(1 if k == middle else count, *core.shape) for k, core in enumerate(start)]
    for _ in range(steps):
        for k in (*range(middle), *range(len(modes) - 1, middle - 1, -1)):
            before, after = _before(cores[:k], a), _after(cores[k + 1 :], a)
            tensor = a.reshape(count, before.shape[1], modes[k], after.shape[2])
            met = torch.einsum("lax,lanb,lyb->lxny", before, tensor, after)
            left, right = before.mT @ before, after @ after.mT
            if k == middle:
                cores[k] = _descend(cores[k][0], met.sum(0), left, right)[None]
            else:
                core = _solve(left, met.flatten(2)).view(met.shape)
                cores[k] = _solve(right, core.flatten(1, 2).mT).mT.reshape(met.shape)
    cores[0] = cores[0] * scale
    return _even_out(cores, middle)


def _before(cores: list[Tensor], a: Tensor) -> Tensor:
    """The product of cores, (L, all their modes, right)."""
    joined = a.new_ones(len(a), 1, 1)
    for core in cores:
        joined = torch.einsum("lax,lxny->lany", joined, core.expand(len(a), -1, -1, -1))
        joined = joined.flatten(1, 2)
    return joined


def _after(cores: list[Tensor], a: Tensor) -> Tensor:
    """The product of cores, (L, left, all their modes)."""
    joined = a.new_ones(len(a), 1, 1)
    for core in reversed(cores):
        joined = torch.einsum("lxny,lyb->lxnb", core.expand(len(a), -1, -1, -1), joined)
        joined = joined.flatten(2, 3)
    return joined


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """The least solution of gram x = right: nothing along what the gram cannot tell from zero."""
    rtol = gram.shape[-1] * torch.finfo(gram.dtype).eps
    inverse = torch.linalg.pinv(gram.double(), rtol=rtol, hermitian=True)
    return (inverse @ right.double()).to(right)


def _descend(core: Tensor, met: Tensor, left: Tensor, right: Tensor, steps: int = 10) -> Tensor:
    """Conjugate gradients for the core with sum over l of left_l core right_l = met."""

    def apply(c: Tensor) -> Tensor:
        return torch.einsum("lxy,ynz,lzw->xnw", left, c, right)

    rest = met - apply(core)
    way, size = rest, rest.square().sum()
    steepest = torch.einsum("lxx,lzz->", left, right)
    for _ in range(steps):
        moved = apply(way)
        curvature = (way * moved).sum()
        if not curvature > torch.finfo(way.dtype).eps * steepest * way.square().sum():
            break  # what is left is rounding
        far = size / curvature
        core, rest = core + far * way, rest - far * moved
        before, size = size, rest.square().sum()
        way = rest + size / before.clamp_min(1e-30) * way
    return core


def _even_out(cores: list[Tensor], middle: int) -> list[Tensor]:
    """Give the outer cores of each tensor one norm, which leaves their product as it is."""
    outer = [core for k, core in enumerate(cores) if k != middle]
    sizes = torch.stack([core.flatten(1).norm(dim=1).clamp_min(1e-30) for core in outer])
    scales = iter(sizes.log().mean(0).exp() / sizes)
    return [
        core if k == middle else core * next(scales)[:, None, None, None]
        for k, core in enumerate(cores)
    ]
