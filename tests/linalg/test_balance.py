from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corank.linalg import balance

from . import hard


@settings(deadline=None)
@given(shift=st.floats(-250, 250), seed=st.integers(0, 1000))
def test_same_product_equal_norms_ordered(shift: float, seed: int) -> None:
    g = hard.draw(seed)
    b = torch.randn(7, 4, generator=g, dtype=torch.float64)
    a = torch.randn(4, 5, generator=g, dtype=torch.float64)
    left, right = balance(b * 10.0**shift, a * 10.0**-shift)
    torch.testing.assert_close(left @ right, b @ a)
    size = left.norm(dim=0)
    torch.testing.assert_close(size, right.norm(dim=1))
    assert (size[:-1] >= size[1:]).all()


def test_half_precision_keeps_what_the_raw_factors_lose() -> None:
    g = hard.draw(0)
    b = torch.randn(20, 3, generator=g) * torch.tensor([1e6, 1.0, 1e-3])
    a = torch.randn(3, 30, generator=g) * torch.tensor([[1e-6], [1.0], [1e3]])
    assert not torch.isfinite(b.half() @ a.half()).all()
    left, right = balance(b, a, dtype=torch.float16)
    assert left.dtype == right.dtype == torch.float16
    torch.testing.assert_close(left.double() @ right.double(), (b @ a).double(), atol=2e-2, rtol=0)


def test_zero_rank_stays_zero() -> None:
    left, right = balance(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [2.0]]))
    assert left.tolist() == [[2.0, 0.0]]
    assert right.tolist() == [[2.0], [0.0]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="share a rank"):
        balance(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="b has NaN"):
        balance(torch.full((3, 2), float("nan")), torch.ones(2, 3))
    with pytest.raises(ValueError, match="wider dtype"):
        balance(torch.full((1, 1), 1e6), torch.full((1, 1), 1e6), dtype=torch.float16)
