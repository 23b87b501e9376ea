from __future__ import annotations

import pytest
import torch

from corank.linalg.orthonormal import independent, orthonormal, renewed
from corank.linalg.sketch import sketch_rows

from . import hard


@pytest.mark.parametrize("spread", [0, 3, 6, 12])
def test_columns_are_orthonormal_and_span_the_block(spread: int) -> None:
    block = torch.randn(80, 20, generator=hard.draw(0), dtype=torch.float64)
    block = block @ torch.diag(torch.logspace(0, -spread, 20, dtype=torch.float64))
    block = block @ torch.linalg.qr(torch.randn(20, 20, generator=hard.draw(1)).double()).Q
    q = torch.linalg.qr(block).Q
    for basis in (orthonormal(block), orthonormal(block.float()).double(), renewed(q + 1e-3)):
        torch.testing.assert_close(
            basis.T @ basis, torch.eye(20, dtype=torch.float64), atol=1e-6, rtol=0
        )
    span = orthonormal(block)
    torch.testing.assert_close(q @ (q.T @ span), span, atol=1e-9 * 10.0**spread, rtol=0)
    assert torch.linalg.cond(independent(block)) < 1.1


def test_dependent_columns_still_give_a_basis() -> None:
    block = torch.ones(30, 4)
    torch.testing.assert_close(orthonormal(block).T @ orthonormal(block), torch.eye(4))


def test_sketch_keeps_every_row_and_full_rank() -> None:
    sketch = sketch_rows(torch.eye(400, dtype=torch.float64), 75, hard.draw(0))
    assert sketch.shape == (75, 400)
    assert bool((sketch.abs().sum(0) > 0).all())
    assert torch.linalg.cond(sketch[:, :60]) < 1e3
    assert torch.equal(sketch, sketch_rows(torch.eye(400).double(), 75, hard.draw(0)))
