"""Sparse codes cut out of the full ones by scores, and the atoms fitted to them once."""

from __future__ import annotations

import torch
from torch import Tensor

#: What is added to the system of the fit, relative to its mean diagonal.
RIDGE = 1e-3
RATE = 1e-3


def pruned_dictionary(
    a: Tensor, d: Tensor, lengths: Tensor, nonzeros: int, anywhere: int = 0, steps: int = 0
) -> tuple[Tensor, Tensor]:
    """Codes s (m, k) and atoms (k, n) for a (m, n) ~ s atoms, from orthonormal atoms d (k, n).

    Of the codes a d^T, `nonzeros` stay in a row: the largest by the geometric mean of |s| and
    |s| * lengths, with `lengths` (k,) those of the atoms before a and d were whitened. Then
    `anywhere` more stay, in whatever rows, the largest by |s| * lengths. The atoms are fitted to
    what stays by ridge regression; d stays where it errs less. `steps` of Adam train both, and the
    best step is kept. (ROCKET: mask, recovery, closed-form update.)
    """
    s = a @ d.mT
    size = s.abs()
    kept = torch.zeros_like(s, dtype=torch.bool)
    kept = kept.scatter(1, (size * lengths.sqrt()).topk(nonzeros, dim=1).indices, True)
    if anywhere:
        left = (size * lengths).masked_fill(kept, -1.0).flatten()
        kept = kept.flatten().scatter(0, left.topk(anywhere).indices, True).view_as(s)
    s = s * kept
    best = min((d, _fitted(a, s)), key=lambda atoms: _error(a, s, atoms))
    return _trained(a, s, best, kept, steps) if steps else (s, best)


def _fitted(a: Tensor, s: Tensor) -> Tensor:
    gram = s.mT @ s
    shift = (RIDGE * gram.diagonal().mean()).clamp_min(torch.finfo(gram.dtype).tiny)
    return torch.linalg.solve(gram + shift * torch.eye(len(gram)).to(gram), s.mT @ a)


def _error(a: Tensor, s: Tensor, d: Tensor) -> float:
    return float((a - s @ d).square().sum())


@torch.enable_grad()
def _trained(a: Tensor, s: Tensor, d: Tensor, kept: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    unit = a.square().mean().sqrt().clamp_min(1e-30)  # Adam's steps have a length of their own
    wanted, best, least = a / unit, (s, d), _error(a, s, d)
    codes, atoms = (s / unit).requires_grad_(True), d.clone().requires_grad_(True)
    adam = torch.optim.Adam([codes, atoms], lr=RATE)
    for _ in range(steps):
        adam.zero_grad()
        (wanted - (codes * kept) @ atoms).square().sum().div(wanted.square().sum()).backward()
        adam.step()
        now = (codes.detach() * kept * unit, atoms.detach().clone())
        if (error := _error(a, *now)) < least:
            best, least = now, error
    return best
