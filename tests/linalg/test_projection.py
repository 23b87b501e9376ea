from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corank.linalg import energy, project, projection_spectrum

from . import hard

LIMIT = {torch.float64: 1e-6, torch.float32: 1e-3}


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("kind", hard.GRAMS)
@pytest.mark.parametrize("shape", hard.SHAPES)
@pytest.mark.parametrize("method", ["auto", "randomized"])
def test_loss_is_eckart_young(shape: str, kind: str, dtype: torch.dtype, method: str) -> None:
    rows, columns = hard.SHAPES[shape]
    c = hard.gram(kind, columns)
    w = hard.weight(rows, columns).to(dtype)
    c = None if c is None else c.to(dtype)
    for rank in (1, 5, 13, min(rows, columns) - 1, min(rows, columns)):
        u, a = project(w, c, rank, method=method)  # type: ignore[arg-type]
        assert (u.shape, a.shape) == ((rows, rank), (rank, columns))
        assert u.dtype == a.dtype == dtype
        eye = torch.eye(rank, dtype=dtype)
        torch.testing.assert_close(
            u.T @ u, eye, atol=1e-5 if dtype.itemsize == 4 else 1e-12, rtol=0
        )
        best, total = hard.optimum(w, c, rank)
        loss = hard.norm(w.double() - u.double() @ a.double(), c)
        assert loss <= best + LIMIT[dtype] * total + 1e-30


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("kind", hard.GRAMS)
@pytest.mark.parametrize("shape", hard.SHAPES)
def test_full_rank_is_lossless_for_every_input(shape: str, kind: str, dtype: torch.dtype) -> None:
    rows, columns = hard.SHAPES[shape]
    w = hard.weight(rows, columns).to(dtype)
    c = hard.gram(kind, columns)
    b, a = project(w, None if c is None else c.to(dtype), min(rows, columns))
    torch.testing.assert_close(b @ a, w, atol=1e-6, rtol=1e-5)


def test_completes_with_the_largest_directions_of_w() -> None:
    w = hard.weight(30, 30)
    x = torch.randn(6, 30, generator=hard.draw(2), dtype=torch.float64)
    c = x.T @ x
    b, a = project(w, c, 12)
    rest = w - torch.matmul(*project(w, c, 6))
    best = torch.linalg.svdvals(rest)[6:].square().sum().sqrt()
    got = torch.linalg.matrix_norm(w - b @ a)
    torch.testing.assert_close(got, best, rtol=1e-6, atol=0)


def test_rank_beyond_w_is_completed_orthonormally() -> None:
    w = hard.weight(20, 30)
    w[7:] = 0
    u, a = project(w, hard.gram("full", 30), 15)
    torch.testing.assert_close(u.T @ u, torch.eye(15, dtype=u.dtype))
    torch.testing.assert_close(u @ a, w)
    assert all(torch.isfinite(f).all() for f in project(torch.zeros(8, 5), None, 5))


def test_tiny_energies_are_resolved_at_their_own_scale() -> None:
    """Energies below float64's eps of the largest still order the basis."""
    scale = torch.logspace(0, -24, 20, dtype=torch.float64)
    u, _ = project(torch.eye(20, dtype=torch.float64), scale, 20)
    torch.testing.assert_close(u, torch.eye(20, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("shape", [(24, 540), (520, 540), (700, 520)])
def test_scale_of_weight_and_gram_does_not_matter(shape: tuple[int, int], scale: float) -> None:
    w, c = hard.weight(*shape).float(), hard.gram("full", shape[1])
    assert c is not None
    b, a = project(w * scale, c.float() * scale, 6)
    torch.testing.assert_close(b @ (a / scale), torch.matmul(*project(w, c.float(), 6)))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    tokens=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_any_shape_and_rank(
    rows: int, columns: int, tokens: int, seed: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    g = hard.draw(seed)
    w = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    x = torch.randn(tokens, columns, generator=g, dtype=torch.float64)
    c = x.T @ x
    u, a = project(w, c, rank)
    torch.testing.assert_close(u.T @ u, torch.eye(rank, dtype=torch.float64))
    best, total = hard.optimum(w, c, rank)
    assert hard.norm(w - u @ a, c) <= best + 1e-6 * total


def test_large_side_takes_the_iteration_and_stays_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slowly decaying spectrum under spikes, in float32, at a quarter of the rank."""
    n, rank = 1100, 200
    g = hard.draw(3)
    w = torch.randn(n, n, generator=g) * torch.arange(1, n + 1) ** -0.2
    w *= 1 + torch.arange(n)[:, None] % 7
    c = torch.eye(n) + torch.diag(torch.arange(1, n + 1) ** -1.0)
    c[7, 7] = 1e6
    b, a = project(w, c, rank)
    best, _ = hard.optimum(w, c, rank)
    assert hard.norm(w.double() - b.double() @ a.double(), c) <= best * 1.001


@pytest.mark.parametrize("kind", ["full", "few_tokens", "condition_1e15", "massive"])
@pytest.mark.parametrize("weight", ["plain", "ill", "deficient", "zero"])
def test_tall_float32_goes_by_the_gram_of_the_weight(weight: str, kind: str) -> None:
    rows, columns, rank = 900, 600, 150
    w = torch.randn(rows, columns, generator=hard.draw(4), dtype=torch.float64)
    if weight == "ill":
        w *= torch.logspace(0, -12, columns, dtype=torch.float64)
    elif weight == "deficient":
        w[:, 100:] = w[:, :100].repeat(1, 5)
    elif weight == "zero":
        w.zero_()
    w = w.float()
    c = hard.gram(kind, columns).float()  # type: ignore[union-attr]
    b, a = project(w, c, rank)
    torch.testing.assert_close(b.T @ b, torch.eye(rank), atol=1e-2, rtol=0)
    best, total = hard.optimum(w, c, rank)
    assert hard.norm(w.double() - b.double() @ a.double(), c) <= best * 1.001 + 1e-3 * total


def test_equal_seeds_agree_and_the_global_state_is_untouched() -> None:
    w = hard.weight(60, 60).float()
    before = torch.get_rng_state()
    u, _ = project(w, None, 5, method="randomized")
    torch.manual_seed(123)
    torch.rand(3)
    again, _ = project(w, None, 5, method="randomized", generator=hard.draw(0))
    assert torch.equal(u, again)
    torch.set_rng_state(before)
    project(w, None, 5, method="randomized")
    assert torch.equal(before, torch.get_rng_state())


def test_signs_make_the_largest_entry_positive() -> None:
    u, _ = project(hard.weight(30, 20), None, 7)
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("kind", hard.GRAMS)
@pytest.mark.parametrize("shape", hard.SHAPES)
def test_spectrum_and_energy_match_the_explicit_svd(shape: str, kind: str) -> None:
    rows, columns = hard.SHAPES[shape]
    w, c = hard.weight(rows, columns), hard.gram(kind, columns)
    exact = torch.linalg.svdvals(w @ hard.root(c, columns)).square()
    got = projection_spectrum(w, c)
    assert got.shape == (min(rows, columns),)
    assert (got[:-1] >= got[1:]).all()
    top = float(exact[0])
    torch.testing.assert_close(got, exact, atol=1e-12 * top, rtol=1e-9)
    assert energy(w, c) == pytest.approx(float(exact.sum()), rel=1e-9, abs=1e-30)


def test_half_precision_is_computed_in_float32() -> None:
    w = hard.weight(24, 30)
    u, _ = project(w.bfloat16(), hard.gram("full", 30).bfloat16(), 4)  # type: ignore[union-attr]
    assert u.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be in 1..20"),
        ({"rank": 21}, "rank must be in 1..20"),
        ({"method": "magic"}, "method must be"),
        ({"w": torch.full((20, 30), float("nan"))}, "w has NaN"),
        ({"gram": torch.full((30,), float("inf"))}, "gram has NaN or infinite"),
        ({"gram": torch.eye(20)}, "gram must be"),
        ({"gram": -torch.eye(30)}, "negative diagonal"),
        ({"w": torch.empty(20, 30, device="meta")}, "meta device"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"w": torch.ones(20, 30), "gram": None, "rank": 3, "method": "auto"}
    arguments = {**good, **change}
    w, c = arguments.pop("w"), arguments.pop("gram")
    with pytest.raises(ValueError, match=message):
        project(w, c, **arguments)  # type: ignore[arg-type]


def test_integer_weights_are_refused() -> None:
    with pytest.raises(TypeError, match="floating-point"):
        project(torch.ones(4, 4, dtype=torch.int8), None, 2)
