from __future__ import annotations

import pytest
import torch

from corank.linalg.reduction import lift_leading, reduce_tall, shifted_root

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


@pytest.mark.parametrize("columns", [100, 900])
def test_the_root_by_strips_is_choleskys(columns: int) -> None:
    w = torch.randn(1000, columns, generator=hard.draw(0), dtype=torch.float64)
    root = shifted_root(w)
    assert root is not None
    assert torch.equal(root, root.triu())
    torch.testing.assert_close(root.T @ root, w.T @ w)
    v = torch.linalg.svd(root).U[:, :8]
    b = lift_leading(w, root, v)
    assert b is not None
    torch.testing.assert_close(b @ (v.T @ root), b @ (b.T @ w))
