from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from corank.linalg import DecompositionError, exact_svd, truncated_svd

from . import hard


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", hard.SHAPES.values())
def test_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    a = hard.weight(*shape).to(dtype)
    u, s, vh, error = exact_svd(a)
    assert error == 0
    assert u.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close((u * s) @ vh, a.to(u), atol=1e-6, rtol=1e-5)
    assert (s[:-1] >= s[1:]).all()
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


def failing(until: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """torch.linalg.svd that fails `until` times."""
    calls = iter(range(100))

    def svd(a: Tensor, **options: Any) -> Any:
        if next(calls) < until:
            raise torch.linalg.LinAlgError("did not converge")
        return real(a, **options)

    return svd


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("shape", hard.SHAPES.values())
def test_fallbacks_give_the_same_answer(
    shape: tuple[int, int], failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = hard.weight(*shape)
    expected = exact_svd(a)
    monkeypatch.setattr(torch.linalg, "svd", failing(failures, torch.linalg.svd))
    got = exact_svd(a)
    for name in ("u", "s", "vh"):
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), atol=1e-9, rtol=1e-6
        )


def test_rank_deficient_survives_the_last_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    a = hard.weight(30, 4) @ hard.weight(4, 20)
    monkeypatch.setattr(torch.linalg, "svd", failing(2, torch.linalg.svd))
    u, s, vh, _ = exact_svd(a)
    torch.testing.assert_close((u * s) @ vh, a)
    torch.testing.assert_close(u.T @ u, torch.eye(20, dtype=u.dtype))


def test_total_failure_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(a: Tensor, **_: Any) -> Any:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", never)
    monkeypatch.setattr(torch.linalg, "eigh", never)
    with pytest.raises(DecompositionError, match=r"every driver.*did not converge"):
        exact_svd(torch.eye(3))


@pytest.mark.parametrize(("shape", "rank"), [((40, 30), 5), ((300, 400), 6), ((300, 300), 200)])
def test_truncated(shape: tuple[int, int], rank: int) -> None:
    a = hard.weight(*shape)
    u, s, vh, error = truncated_svd(a, rank)
    best = torch.linalg.svdvals(a)
    residual = torch.linalg.matrix_norm(a - (u * s) @ vh, ord=2)
    assert best[rank] * (1 - 1e-9) <= residual <= best[rank] * 1.05
    assert residual <= error * (1 + 1e-9)


def test_full_rank_has_no_error() -> None:
    assert truncated_svd(hard.weight(9, 6), 6).error == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_is_refused(bad: float) -> None:
    a = torch.ones(4, 4)
    a[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        exact_svd(a)
    with pytest.raises(ValueError, match="NaN or infinite"):
        truncated_svd(a, 2)


@pytest.mark.parametrize("rank", [0, 5])
def test_rank_outside_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.4"):
        truncated_svd(torch.ones(4, 6), rank)
