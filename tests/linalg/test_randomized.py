from __future__ import annotations

import pytest
import torch

from corank.linalg import Implicit, randomized_svd

from . import hard

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["krylov", "subspace"])
@pytest.mark.parametrize("shape", [(300, 80), (80, 300), (150, 150)])
def test_near_best_and_error_bounds_the_residual(shape: tuple[int, int], method: str) -> None:
    a = hard.weight(*shape)
    best = torch.linalg.svdvals(a)
    u, s, vh, error = randomized_svd(a, 10, iterations=3, method=method)  # type: ignore[arg-type]
    residual = torch.linalg.matrix_norm(a - (u * s) @ vh, ord=2)
    frobenius = torch.linalg.matrix_norm(a - (u * s) @ vh)
    assert residual <= 1.02 * best[10]
    assert residual <= error <= 8 * frobenius
    torch.testing.assert_close(s, best[:10], rtol=1e-2, atol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(10, dtype=u.dtype))
    torch.testing.assert_close(vh @ vh.T, torch.eye(10, dtype=u.dtype))
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


def test_krylov_is_the_more_accurate_per_product() -> None:
    a = hard.weight(200, 200) + 0.05 * torch.eye(200, dtype=torch.float64)
    lost = {
        method: torch.linalg.matrix_norm(a).square()
        - randomized_svd(a, 15, method=method).s.square().sum()  # type: ignore[arg-type]
        for method in ("krylov", "subspace")
    }
    assert lost["krylov"] < lost["subspace"]


def test_exact_at_full_rank_and_on_rank_deficient_input() -> None:
    a = hard.weight(12, 9)
    u, s, vh, error = randomized_svd(a, 9)
    torch.testing.assert_close((u * s) @ vh, a)
    assert error < 1e-12
    low = a[:, :3] @ hard.weight(3, 40)
    u, s, vh, error = randomized_svd(low, 6)
    torch.testing.assert_close((u * s) @ vh, low)
    torch.testing.assert_close(u.T @ u, torch.eye(6, dtype=u.dtype))


def test_implicit_operator_gives_the_explicit_answer() -> None:
    w, c = hard.weight(40, 60), hard.gram("full", 60)
    assert c is not None

    def apply(x: torch.Tensor) -> torch.Tensor:
        return w @ (c @ (w.T @ x))

    product = Implicit((40, 40), apply, apply, w.dtype, CPU)
    implicit, explicit = randomized_svd(product, 5), randomized_svd(w @ c @ w.T, 5)
    torch.testing.assert_close(implicit.s, explicit.s)
    torch.testing.assert_close(implicit.u, explicit.u)


def test_own_generator_only() -> None:
    a = hard.weight(60, 60)
    state = torch.get_rng_state()
    first = randomized_svd(a, 4)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(first.u, randomized_svd(a, 4, generator=hard.draw(0)).u)
    other = randomized_svd(a, 4, iterations=0, generator=hard.draw(1))
    assert not torch.equal(randomized_svd(a, 4, iterations=0).u, other.u)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be"),
        ({"rank": 7}, "rank must be"),
        ({"oversample": -1}, "oversample"),
        ({"iterations": -1}, "iterations"),
        ({"method": "power"}, "method must be"),
        ({"a": torch.full((6, 8), float("inf"))}, "NaN or infinite"),
        (
            {
                "a": Implicit(
                    (6, 8), lambda x: x[:6] * float("nan"), lambda x: x, torch.float32, CPU
                )
            },
            "a product with a has NaN",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"a": torch.ones(6, 8), "rank": 2, **change}
    with pytest.raises(ValueError, match=message):
        randomized_svd(**arguments)  # type: ignore[arg-type]
