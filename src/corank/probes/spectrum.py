from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..linalg import rank_by_energy, rank_by_entropy, rank_by_tolerance, stable_rank
from ..metrics import Metric
from ..operators import Operator
from ..rewrites import spectrum as squared_spectrum


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a weight, descending, and what they say about its rank.

    stable_rank: ||W||_F^2 / ||W||_2^2. effective_rank: exp of the entropy of the normalised
    singular values (Roy and Vetterli 2007). numerical_rank: values above max(m, n) * eps * the
    largest, eps of the weight's dtype. rank_90, rank_99: ranks that hold so much of the energy.
    """

    values: list[float]
    stable_rank: float
    effective_rank: float
    numerical_rank: int
    rank_90: int
    rank_99: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)


def spectrum(op: Operator, metric: Metric | None = None) -> Spectrum:
    """The spectrum of an operator's matrix, or of A^(1/2) W C^(1/2) in a metric."""
    values = squared_spectrum(op.dense().detach(), metric or Metric()).sqrt()
    tolerance = max(op.shape) * torch.finfo(op.dtype).eps
    return Spectrum(
        values=values.tolist(),
        stable_rank=stable_rank(values),
        effective_rank=rank_by_entropy(values),
        numerical_rank=rank_by_tolerance(values, tolerance),
        rank_90=rank_by_energy(values, 0.90),
        rank_99=rank_by_energy(values, 0.99),
    )
