from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corank.linalg.eigenspace import eigenspace_width, top_eigenspace

from . import hard


def spectrum(n: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(1, n + 1, dtype=dtype) ** -0.5


@pytest.mark.parametrize(
    ("dtype", "limit", "applies"), [(torch.float32, 2e-3, 8), (torch.float64, 4e-6, 17)]
)
def test_settles_in_few_products_within_its_tolerance(
    dtype: torch.dtype, limit: float, applies: int
) -> None:
    """A span lost between products, or a filter of the wrong part, takes more of them."""
    values = spectrum(400, dtype)
    widths: list[int] = []
    width = eigenspace_width(60)

    def apply(block: Tensor) -> Tensor:
        widths.append(block.shape[1])
        return values[:, None] * block

    total = float(values.double().sum())
    start = apply(torch.randn(400, width, generator=hard.draw(0), dtype=dtype))
    found = top_eigenspace(apply, start, 60, total)
    assert found.converged
    assert widths.count(width) <= applies
    captured = float((found.vectors.double().square() * values.double()[:, None]).sum())
    tail = float(values[60:].double().sum())
    assert total - captured <= tail * (1 + limit)
    torch.testing.assert_close(
        found.vectors.T @ found.vectors, torch.eye(60, dtype=dtype), atol=1e-5, rtol=0
    )


def test_does_not_claim_what_it_did_not_reach() -> None:
    """An operator that changes at every product never settles."""
    g = hard.draw(1)

    def apply(block: Tensor) -> Tensor:
        return torch.rand(100, 1, generator=g, dtype=block.dtype) * block

    start = torch.randn(100, 36, generator=hard.draw(0), dtype=torch.float64)
    assert not top_eigenspace(apply, start, 20, 50.0).converged
