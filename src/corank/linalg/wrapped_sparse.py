"""A 2:4 sparse matrix between two block diagonal ones, fitted in turn (ARMOR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_matrix
from .patterns import n_of_m

KEPT, GROUP = 2, 4
#: Steps without a better one after which the descent ends.
PATIENCE = 100


class Wrapped(NamedTuple):
    """left (m / b, b, b) and right (n / b, b, b), the blocks, around core (m, n)."""

    left: Tensor
    core: Tensor
    right: Tensor


def wrapped_sparse(
    a: Tensor,
    weights: Tensor,
    block: int,
    steps: int,
    rate: float = 3e-3,
    generator: torch.Generator | None = None,
) -> Wrapped:
    """Blocks and a 2:4 core with small sum of weights_j (a - left core right)_ij^2.

    a: (m, n), both multiples of block, and block of 4. weights: (n,), not negative. It starts at
    identities around the entries that are largest as the loss sees them. In each of `steps`, Adam
    moves the blocks and the core's numbers, and then in every block of the core one group of four,
    drawn in proportion to its gradient, gets the best of its six masks with the best numbers for
    it. The best step is kept, so the loss is never above that of the start.

    Raises ValueError for shapes that do not fit.
    """
    check_matrix(a, "a")
    if block < 1 or block % GROUP or any(side % block for side in a.shape):
        raise ValueError(f"blocks of {block}, a multiple of {GROUP}, do not fit {tuple(a.shape)}")
    grid = _grid(a, block)  # (rows, columns, b, b)
    seen = weights.to(a).clamp_min(0).sqrt().unflatten(0, (-1, 1, block))[None]
    kept = n_of_m(a.square() * weights.to(a).clamp_min(0), KEPT, GROUP)
    core, mask = grid * _grid(kept, block), _grid(kept, block)
    eye = torch.eye(block).to(a)
    left, right = eye.repeat(len(grid), 1, 1), eye.repeat(grid.shape[1], 1, 1)
    least = float(_loss(grid, seen, left, core, right))
    best, since = (left.clone(), core.clone(), right.clone()), 0
    leaves = [leaf.requires_grad_(True) for leaf in (left, core, right)]
    adam = torch.optim.Adam(leaves, lr=rate)
    scale = max(least, torch.finfo(a.dtype).tiny)
    for _ in range(steps):
        with torch.enable_grad():
            adam.zero_grad()
            (_loss(grid, seen, left, core * mask, right) / scale).backward()
        adam.step()
        with torch.no_grad():
            core.mul_(mask)
        renew_groups(grid, seen, left, core, right, mask, generator)
        with torch.no_grad():
            loss = float(_loss(grid, seen, left, core, right))
        since += 1
        if loss < least:
            least, since = loss, 0
            best = (left.detach().clone(), core.detach().clone(), right.detach().clone())
        if since >= PATIENCE:
            break
    return Wrapped(best[0], _whole(best[1]), best[2])


def _grid(a: Tensor, block: int) -> Tensor:  # (m, n) -> (rows, columns, b, b)
    return a.unflatten(1, (-1, block)).unflatten(0, (-1, block)).transpose(1, 2)


def _whole(grid: Tensor) -> Tensor:
    return grid.transpose(1, 2).flatten(2).flatten(0, 1)


def _loss(grid: Tensor, seen: Tensor, left: Tensor, core: Tensor, right: Tensor) -> Tensor:
    return ((left[:, None] @ core @ right[None] - grid) * seen).square().sum()


def renew_groups(
    grid: Tensor,
    seen: Tensor,
    left: Tensor,
    core: Tensor,
    right: Tensor,
    mask: Tensor,
    generator: torch.Generator | None,
) -> None:
    """Give one group in every block of the core its best mask and numbers, in place."""
    with torch.no_grad():
        b = grid.shape[-1]
        rest = (left[:, None] @ core @ right[None] - grid) * seen
        behind = right[None] * seen  # (1, columns, b, b), as the loss sees it
        pull = steepness(rest, left, behind).flatten(2).flatten(0, 1)
        pull = (pull + torch.finfo(pull.dtype).tiny).cpu()
        chosen = torch.multinomial(pull, 1, generator=generator)[:, 0].to(rest.device)
        row, column = chosen // (b // GROUP), chosen % (b // GROUP) * GROUP
        cells = torch.arange(len(chosen), device=rest.device)
        rows, columns = cells // grid.shape[1], cells % grid.shape[1]
        places = column[:, None] + torch.arange(GROUP, device=rest.device)
        before = left[rows, :, row]  # (cells, b)
        after = behind[0, columns].gather(1, places[:, :, None].expand(-1, -1, b))  # (cells, 4, b)
        at = (rows[:, None], columns[:, None], row[:, None], places)
        left_out = rest.flatten(0, 1) - before[:, :, None] * (core[at][:, None] @ after)
        new, kept = best_of_masks(left_out, before, after)
        core[at], mask[at] = new, kept


def steepness(rest: Tensor, left: Tensor, behind: Tensor) -> Tensor:
    """|slope| of |rest|^2 / 2 in the core, summed over groups: (rows, columns, b, b / 4)."""
    return (left.mT[:, None] @ rest @ behind.mT).abs().unflatten(-1, (-1, GROUP)).sum(-1)


def best_of_masks(rest: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers v (k, 4), two of them not zero, with least |rest + before v after|^2, and which.

    rest (k, b, b), before (k, b), after (k, 4, b): all six masks, each by its normal equations.
    """
    masks = torch.combinations(torch.arange(GROUP, device=rest.device), KEPT)  # (6, 2)
    pull = -(after @ rest.mT @ before[:, :, None])[..., 0]  # (k, 4)
    system = (after @ after.mT) * before.square().sum(1)[:, None, None]
    size = system.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(rest.dtype).tiny)
    shift = torch.finfo(rest.dtype).eps * size[:, None, None] * torch.eye(GROUP).to(rest)
    small = (system + shift)[:, masks[:, :, None], masks[:, None, :]]  # (k, 6, 2, 2)
    wanted = pull[:, masks]
    values = torch.linalg.solve(small, wanted[..., None])[..., 0]
    best = (values * wanted).sum(2).argmax(1)  # what each takes off the loss
    cells = torch.arange(len(rest), device=rest.device)
    places = masks[best]
    new = torch.zeros_like(pull).scatter(1, places, values[cells, best])
    kept = torch.zeros_like(pull, dtype=torch.bool).scatter(1, places, True)
    return new, kept
