from __future__ import annotations

import pytest
import torch

from corank.linalg import project, two_sided

from . import hard


@pytest.mark.parametrize("left", hard.GRAMS)
@pytest.mark.parametrize("right", ["none", "diagonal", "full", "few_tokens"])
@pytest.mark.parametrize("shape", hard.SHAPES)
def test_loss_is_eckart_young_on_both_sides(shape: str, left: str, right: str) -> None:
    rows, columns = hard.SHAPES[shape]
    w = hard.weight(rows, columns)
    a_gram, c = hard.gram(left, rows, seed=5), hard.gram(right, columns)
    left_root = hard.root(a_gram, rows)
    for rank in (1, 7, min(rows, columns) - 1):
        b, a = two_sided(w, a_gram, c, rank)
        assert b.shape == (rows, rank)
        assert a.shape == (rank, columns)
        best, total = hard.optimum(left_root @ w, c, rank)
        assert hard.norm(left_root @ (w - b @ a), c) <= best + 1e-6 * total


@pytest.mark.parametrize("left", [kind for kind in hard.GRAMS if kind != "condition_1e15"])
@pytest.mark.parametrize("shape", hard.SHAPES)
def test_full_rank_is_lossless(shape: str, left: str) -> None:
    rows, columns = hard.SHAPES[shape]
    w = hard.weight(rows, columns)
    b, a = two_sided(w, hard.gram(left, rows), hard.gram("few_tokens", columns), min(rows, columns))
    torch.testing.assert_close(b @ a, w, atol=1e-8, rtol=1e-8)


def test_identity_on_the_left_is_the_projection() -> None:
    w, c = hard.weight(24, 30), hard.gram("full", 30)
    expected = torch.matmul(*project(w, c, 5))
    for left in (None, torch.ones(24, dtype=w.dtype), torch.eye(24, dtype=w.dtype)):
        b, a = two_sided(w, left, c, 5)
        torch.testing.assert_close(b @ a, expected)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (torch.ones(3), "left_gram must be"),
        (torch.eye(3), "left_gram must be"),
        (torch.ones(8, 7), "left_gram must be square"),
        (-torch.ones(8), "left_gram has a negative"),
        (torch.full((8, 8), float("nan")), "left_gram has NaN"),
    ],
)
def test_bad_left_gram_is_named(left: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_sided(torch.ones(8, 6), left, None, 2)
