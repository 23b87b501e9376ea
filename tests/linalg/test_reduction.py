from __future__ import annotations

import pytest
import torch

from corank.linalg.reduction import reduce_tall

from . import hard


@pytest.mark.parametrize("deficient", [False, True])
def test_geometry_is_kept_and_the_lift_is_orthonormal(deficient: bool) -> None:
    w = torch.randn(90, 30, generator=hard.draw(0), dtype=torch.float64)
    if deficient:
        w[:, 20:] = w[:, :10]
    core, lift = reduce_tall(w)
    torch.testing.assert_close(core.T @ core, w.T @ w)
    torch.testing.assert_close(lift(core), w)
    v = torch.linalg.svd(core).U[:, :8]
    torch.testing.assert_close(lift(v).T @ lift(v), torch.eye(8, dtype=w.dtype))
