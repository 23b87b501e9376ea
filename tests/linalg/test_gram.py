from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corank.linalg import GramAccumulator
from tests.processes import in_two_processes

from . import hard


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=hard.draw(seed)) + 0.5


def test_moments_of_a_stream() -> None:
    stream = [tokens(i, 3, 11, 6) for i in range(4)] + [tokens(9, 6), tokens(10, 0, 6)]
    gram = GramAccumulator(6)
    for x in stream:
        gram.add(x)
    flat = torch.cat([x.reshape(-1, 6) for x in stream]).double()
    assert float(gram.count) == 133
    assert gram.second_moment().dtype == torch.float32
    torch.testing.assert_close(gram.second_moment(), (flat.T @ flat / 133).float())
    torch.testing.assert_close(gram.mean(), flat.mean(0).float())
    torch.testing.assert_close(gram.covariance(), torch.cov(flat.T, correction=0).float())


def test_many_tokens_do_not_accumulate_rounding() -> None:
    x = torch.full((16, 4), 0.1)
    gram = GramAccumulator(4)
    for _ in range(3000):
        gram.add(x)
    square = float(x[0, 0].double() ** 2)
    torch.testing.assert_close(
        gram.outer_sum, torch.full((4, 4), 48_000 * square, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_weights_repeat_tokens() -> None:
    x = tokens(0, 4, 5)
    weighted, repeated = GramAccumulator(5, dtype=torch.float64), GramAccumulator(5)
    weighted.add(x, torch.tensor([2, 0, 1, 3]))
    repeated.add(x.repeat_interleave(torch.tensor([2, 0, 1, 3]), dim=0))
    for one, other in zip(weighted.sums(), repeated.sums(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_half_precision_activations_do_not_overflow() -> None:
    gram = GramAccumulator(2)
    gram.add(torch.full((10, 2), 6e4, dtype=torch.float16))
    torch.testing.assert_close(gram.second_moment(), torch.full((2, 2), 6e4**2), rtol=1e-3, atol=0)


def test_merge_is_one_stream() -> None:
    x = tokens(0, 20, 4)
    whole, first, second = (GramAccumulator(4) for _ in range(3))
    whole.add(x)
    first.add(x[:7])
    second.add(x[7:])
    first.merge(second)
    torch.testing.assert_close(first.second_moment(), whole.second_moment())
    torch.testing.assert_close(first.mean(), whole.mean())
    with pytest.raises(ValueError, match="widths differ"):
        first.merge(GramAccumulator(5))


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (torch.ones(2, 4), None, "x must be"),
        (torch.full((2, 3), float("nan")), None, "NaN or infinite"),
        (torch.full((2, 3), 1e30), None, "overflow"),
        (torch.ones(2, 3), torch.ones(3), "weights must be"),
        (torch.ones(2, 3), -torch.ones(2), "weights must be finite"),
    ],
)
def test_bad_input_leaves_the_sums(x: Tensor, weights: Tensor | None, message: str) -> None:
    gram = GramAccumulator(3)
    gram.add(tokens(0, 5, 3))
    before = [total.clone() for total in gram.sums()]
    with pytest.raises(ValueError, match=message):
        gram.add(x, weights)
    assert all(torch.equal(a, b) for a, b in zip(before, gram.sums(), strict=True))


def test_empty_and_wrong_settings_are_refused() -> None:
    for read in (GramAccumulator.second_moment, GramAccumulator.mean, GramAccumulator.covariance):
        with pytest.raises(ValueError, match="no tokens"):
            read(GramAccumulator(3))
    with pytest.raises(ValueError, match="n must be"):
        GramAccumulator(0)
    with pytest.raises(ValueError, match="dtype must be"):
        GramAccumulator(3, dtype=torch.float16)


def reduce_on(rank: int, folder: Path) -> None:
    gram = GramAccumulator(4)
    gram.add(torch.full((rank + 1, 4), float(rank + 1)))
    gram.all_reduce()
    torch.save(list(gram.sums()), folder / f"{rank}.pt")


def test_all_reduce_over_two_processes(tmp_path: Path) -> None:
    in_two_processes(reduce_on, tmp_path)
    for rank in range(2):
        outer, total, count = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float(count) == 3
        assert total.tolist() == [5.0] * 4
        assert outer.tolist() == [[9.0] * 4] * 4
