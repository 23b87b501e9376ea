from __future__ import annotations

import pytest
import torch

from corank.linalg import principal_components
from corank.linalg.eigenspace import eigenspace_width

from . import hard


@pytest.mark.parametrize(("side", "count"), [(30, 4), (1100, 5), (1100, 1000)])
def test_components_are_the_leading_eigenpairs(side: int, count: int) -> None:
    basis = torch.linalg.qr(torch.randn(side, side, generator=hard.draw(0)).double())[0]
    values = torch.arange(1, side + 1, dtype=torch.float64) ** -1.0
    found, vectors = principal_components((basis * values) @ basis.mT, count)
    assert (count == 5) == (side > 1024 and eigenspace_width(count) <= side // 2)
    torch.testing.assert_close(found, values[:count], rtol=1e-4, atol=1e-9)
    cosine = torch.linalg.vecdot(vectors.mT, basis[:, :count].mT).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-3, atol=0)
