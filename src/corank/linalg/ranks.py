"""How many singular values to keep, and how many a matrix effectively has."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_by_energy(s: Tensor, keep: float) -> int:
    """Smallest rank whose squared singular values hold a share `keep` of the total.

    s: singular values (k,), descending. keep in (0, 1]. At least 1; a zero matrix gives 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    s = _check_spectrum(s)
    tails = s.square().flip(0).cumsum(0).flip(0)  # (k,) energy from i on, summed small to large
    allowed = (1 - keep) * float(tails[0])
    return max(1, int((tails > allowed).sum()))


def rank_by_tolerance(s: Tensor, tolerance: float) -> int:
    """Number of singular values above `tolerance` times the largest (0 for a zero matrix).

    s: singular values (k,), descending. tolerance in [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")
    s = _check_spectrum(s)
    return int((s > tolerance * s[0]).sum())


def rank_by_entropy(s: Tensor) -> float:
    """Effective rank exp(H(s / sum s)), in [1, k] (Roy and Vetterli 2007); 0 for a zero matrix.

    s: singular values (k,), descending.
    """
    s = _check_spectrum(s)
    if float(s[0]) == 0:
        return 0.0
    share = s / s[0]  # first by the largest, so that the sum cannot overflow
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())


def stable_rank(s: Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm, in [1, k]; 0 for a zero matrix.

    s: singular values (k,), descending.
    """
    s = _check_spectrum(s)
    return float((s / s[0]).square().sum()) if float(s[0]) > 0 else 0.0


def _check_spectrum(s: Tensor) -> Tensor:
    """`s` as float64 on the CPU; raises ValueError unless finite, >= 0, descending, non-empty."""
    if s.ndim != 1 or s.numel() == 0:
        raise ValueError(f"s must be a non-empty vector of singular values, got {tuple(s.shape)}")
    s = s.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(s).all()) or float(s.min()) < 0:
        raise ValueError("s must hold finite singular values >= 0")
    if bool((s[1:] > s[:-1]).any()):
        raise ValueError("s must be descending")
    return s
