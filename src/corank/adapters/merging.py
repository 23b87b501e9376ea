"""Folding the active adapters into one matrix for a while, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..models import require_one_matrix
from ..operators import Dense, Operator, Quantised, requantise
from .record import adapted


@dataclass(frozen=True)
class Merged:
    """What a merge cost: relative Frobenius error of each merged weight by rounding, and bytes."""

    errors: dict[str, float]
    bytes: int

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values(), default=0.0)


@torch.no_grad()
def merge_adapters(model: nn.Module, dtype: Literal["base", "wide"] = "base") -> Merged:
    """Let the active adapters act as one matrix per weight, in place, until `unmerge_adapters`.

    The original weights are kept aside, so unmerging is exact however often it is done.
    dtype: "base" rounds the merged matrix to what the base weight is: its dtype, or the codes of
    its own grid where it is quantised; "wide" keeps it in the adapters' (float32 over half
    precision or quantised weights). Returns what rounding cost: where that is too much, merge
    wide, or leave the adapters unmerged.
    """
    errors: dict[str, float] = {}
    total = 0
    weights = adapted(model)
    for path, weight in weights.items():
        require_one_matrix(path, weight.view)
    for path, weight in weights.items():
        weight.merge(None)
        exact = weight.view.dense()
        merged = _rounded(weight.base, exact) if dtype == "base" else Dense(exact.clone())
        size = torch.linalg.vector_norm(exact.float()).clamp_min(torch.finfo(torch.float32).tiny)
        errors[path] = float(
            torch.linalg.vector_norm(merged.dense().float() - exact.float()) / size
        )
        weight.merge(merged)
        total += merged.bytes()
    return Merged(errors, total)


def _rounded(base: Operator, exact: Tensor) -> Operator:
    if isinstance(base, Quantised):
        return requantise(base, exact)
    return Dense(exact.to(base.dtype, copy=True))


def unmerge_adapters(model: nn.Module) -> None:
    """Undo `merge_adapters`: the weights are again, bit for bit, what they were."""
    for weight in adapted(model).values():
        weight.merge(None)
