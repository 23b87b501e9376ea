"""Matrices that share the bases of their right factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_finite


class SharedBases(NamedTuple):
    """W_e ~ left_e f(sum over i of weights_ei bases_i), for a function f of single entries."""

    left: Tensor  # (count, m, width)
    weights: Tensor  # (count, bases), each row above zero and of sum one
    bases: Tensor  # (bases, width, n)

    def mixed(self, function: Callable[[Tensor], Tensor]) -> Tensor:  # (count, width, n)
        """The right factors."""
        return function(torch.einsum("eb,brn->ern", self.weights, self.bases))


@torch.enable_grad()
def shared_bases(
    matrices: Tensor,
    bases: int,
    width: int,
    function: Callable[[Tensor], Tensor],
    steps: int = 500,
    rate: float = 0.07,
) -> SharedBases:
    """Fit `bases` shared matrices of `width` rows to `matrices` (count, m, n).

    As in MoBE (2508.05257): Adam on the mean squared error of the matrices over the size of their
    entries, from the singular vectors of each of `bases` runs of matrices, one on another. The best
    step is kept, so more steps are not worse. Nothing is drawn.

    Raises ValueError for no or more bases than matrices, a width outside 1 to min(m, n), no steps
    or entries that are not finite.
    """
    check_finite(matrices, "matrices")
    if matrices.ndim != 3 or not 1 <= bases <= len(matrices) or steps < 1:
        raise ValueError(
            f"matrices must be (count, m, n), bases 1 to count and steps at least 1: "
            f"{tuple(matrices.shape)}, {bases}, {steps}"
        )
    if not 1 <= width <= min(matrices.shape[1:]):
        raise ValueError(f"width={width} is outside 1 to {min(matrices.shape[1:])}")
    size = matrices.square().mean().sqrt().clamp_min(torch.finfo(matrices.dtype).tiny)
    wanted = matrices / size
    leaves = [leaf.requires_grad_() for leaf in _start(wanted, bases, width)]
    left, logits, shared = leaves
    optimizer = torch.optim.Adam(leaves, lr=rate)
    best, least = [leaf.detach().clone() for leaf in leaves], torch.inf
    for step in range(steps + 1):
        fitted = SharedBases(left, logits.softmax(1), shared)
        error = (left @ fitted.mixed(function) - wanted).square().mean()
        if error < least:
            best, least = [leaf.detach().clone() for leaf in leaves], float(error.detach())
        if step < steps:
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
    return SharedBases(best[0] * size, best[1].softmax(1), best[2])


def _start(matrices: Tensor, bases: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best right factor of each run of matrices, and the left factors over it."""
    left, right, runs = [], [], matrices.tensor_split(bases)
    for run in runs:
        u, s, vh = torch.linalg.svd(run.flatten(0, 1), full_matrices=False)
        left.append((u[:, :width] * s[:width]).unflatten(0, run.shape[:2]))
        right.append(vh[:width])
    owner = torch.cat([torch.full((len(run),), i) for i, run in enumerate(runs)])
    logits = F.one_hot(owner, bases).to(matrices)
    scale = matrices.shape[2] ** 0.5  # entries of the bases of size one, as the step size is
    return torch.cat(left) / scale, logits, torch.stack(right) * scale
