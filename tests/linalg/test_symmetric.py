from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from corank.linalg import (
    DecompositionError,
    add_ridge,
    eigh_clamped,
    lower_root,
    root_psd,
    sqrt_psd,
)

from . import hard

FULL = [kind for kind in hard.GRAMS if kind not in ("none", "diagonal")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", FULL)
def test_decomposition_and_roots_rebuild_c(kind: str, dtype: torch.dtype) -> None:
    c = hard.gram(kind, 30)
    assert c is not None
    c = c.to(dtype)
    tolerance = {"rtol": 0, "atol": 40 * torch.finfo(dtype).eps * float(c.abs().max())}
    values, vectors = eigh_clamped(c)
    assert (values >= 0).all()
    assert (values[:-1] >= values[1:]).all()
    torch.testing.assert_close((vectors * values) @ vectors.T, c, **tolerance)
    root, thin = sqrt_psd(c), root_psd(c)
    torch.testing.assert_close(root @ root, c, **tolerance)
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(thin @ thin.T, c, **tolerance)


def test_thin_root_has_the_numeric_rank() -> None:
    assert root_psd(hard.gram("few_tokens", 30)).shape == (30, 10)  # type: ignore[arg-type]
    assert root_psd(torch.zeros(5, 5)).shape == (5, 0)


def test_ridge() -> None:
    c = torch.diag(torch.tensor([4.0, 2.0, 0.0]))
    torch.testing.assert_close(add_ridge(c, 0.5), torch.diag(torch.tensor([5.0, 3.0, 1.0])))
    torch.testing.assert_close(add_ridge(c.diagonal(), 0.5), torch.tensor([5.0, 3.0, 1.0]))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge"):
            add_ridge(c, bad)


def test_what_is_no_second_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        eigh_clamped(torch.ones(3, 4))
    with pytest.raises(ValueError, match="not positive semidefinite"):
        eigh_clamped(torch.diag(torch.tensor([1.0, -0.5])))
    with pytest.raises(ValueError, match="NaN"):
        eigh_clamped(torch.full((2, 2), float("nan")))


def test_failure_retries_then_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch.linalg.eigh, []

    def once(c: Tensor) -> Any:
        calls.append(c)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("no convergence")
        return real(c)

    monkeypatch.setattr(torch.linalg, "eigh", once)
    values, _ = eigh_clamped(torch.diag(torch.tensor([1.0, 3.0])))
    torch.testing.assert_close(values, torch.tensor([3.0, 1.0]))

    def never(c: Tensor) -> Any:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", never)
    with pytest.raises(DecompositionError, match="no convergence"):
        eigh_clamped(torch.eye(3))


@pytest.mark.parametrize("kind", FULL)
def test_a_lower_root_rebuilds_c_and_its_ridge(kind: str) -> None:
    c = hard.gram(kind, 30)
    assert c is not None
    single = c.float()
    root = lower_root(single, 1e-6)
    assert torch.equal(root, root.tril())
    wanted = add_ridge(single.double(), 1e-6)
    scale = wanted.diagonal().clamp_min(1e-50).sqrt()
    gap = (root @ root.T - wanted) / scale / scale[:, None]
    assert gap.abs().max() < 1e-5


def test_a_lower_root_outlives_rounding_and_refuses_what_is_no_moment() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 60, generator=g) * torch.logspace(0, 4, 60)
    c = (x.T @ x / 20).float()
    assert torch.linalg.cholesky_ex(add_ridge(c.double(), 1e-12)).info > 0
    root = lower_root(c, 1e-12)
    scale = c.diagonal().double().sqrt()
    assert ((root @ root.T - c) / scale / scale[:, None]).abs().max() < 1e-4
    assert lower_root(torch.zeros(3, 3), 1e-4).diagonal().gt(0).all()
    with pytest.raises(DecompositionError, match="not positive semidefinite"):
        lower_root(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 0.0)
