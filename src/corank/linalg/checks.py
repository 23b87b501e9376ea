"""Shared argument checks of the numerical functions, and the error they raise for bad numerics."""

from __future__ import annotations

import torch
from torch import Tensor


class DecompositionError(RuntimeError):
    """No available algorithm could decompose a finite matrix; nothing was returned in its place."""


def check_matrix(a: Tensor, name: str) -> Tensor:
    """Return `a` unchanged if it is a finite, non-empty, real floating (m, n) matrix.

    Raises TypeError for a non-floating dtype and ValueError for a wrong shape, values on the meta
    device, or NaN and infinite entries.
    """
    if not isinstance(a, Tensor) or not a.is_floating_point():
        kind = a.dtype if isinstance(a, Tensor) else type(a).__name__
        raise TypeError(f"{name} must be a real floating-point tensor, got {kind}")
    if a.ndim != 2 or a.numel() == 0:
        raise ValueError(f"{name} must be a non-empty matrix, got shape {tuple(a.shape)}")
    check_finite(a, name)
    return a


def check_finite(a: Tensor, name: str) -> None:
    """Raise ValueError if `a` has no values (meta device) or has NaN or infinite entries."""
    if a.is_meta:
        raise ValueError(f"{name} is on the meta device; load its values first")
    if not all_finite(a):
        raise ValueError(f"{name} has NaN or infinite entries; repair or exclude it first")


def all_finite(a: Tensor) -> bool:
    """Whether no entry is NaN or infinite, at a tenth of the price of looking at each."""
    if a.numel() == 0:
        return True
    low, high = a.aminmax()  # NaN goes through both
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_rank(rank: int, shape: tuple[int, int]) -> int:
    """Return `rank` if 1 <= rank <= min(shape), else raise ValueError."""
    if not 1 <= rank <= min(shape):
        raise ValueError(f"rank must be in 1..{min(shape)} for shape {tuple(shape)}, got {rank}")
    return rank


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is float64, else float32 (half precisions are computed in float32)."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def own_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """`generator`, or a fresh one with seed 0, so that the global random state is never used."""
    if generator is not None:
        return generator
    return torch.Generator(device=device).manual_seed(0)


def gaussian(rows: int, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal (rows, columns) with the dtype and device of `like`.

    Drawn on the generator's own device, so that a CPU generator serves every device.
    """
    drawn = torch.randn(
        rows, columns, generator=generator, device=generator.device, dtype=like.dtype
    )
    return drawn.to(like.device)
