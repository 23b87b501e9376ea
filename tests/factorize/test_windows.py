"""GBLR: windows and their gradients, and how they narrow."""

import math

import pytest
import torch
from torch import nn

import corank
from corank.operators import Windowed

from ..adapters.small import small_model
from .small import TOTAL, begin, operators, train
from .test_low_rank_manifold import drawn


def sinc(x):
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


def smooth(width, start, size, sigma):
    """A window by its Fourier series, without rounding."""
    total = torch.full((size,), width, dtype=torch.float64)
    j = torch.arange(size, dtype=torch.float64)
    for k in range(1, size):
        k = k if 2 * k <= size else k - size
        weight = math.exp(-0.5 * (k / sigma) ** 2) * width * sinc(k * width) / sinc(k / size)
        angle = math.pi * k * (1 / size - width - 2 * start) + 2 * math.pi * k * j / size
        total = total + weight * torch.cos(angle)
    return total


def window(width, start, sigma, size=9):
    widths = torch.tensor([[width], [1.0]], dtype=torch.float64, requires_grad=True)
    starts = torch.tensor([[start], [0.0]], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(size, 1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    op = Windowed(*ones, nn.Parameter(widths), nn.Parameter(starts), sigma)
    return op, op.dense()[:, 0]


@pytest.mark.parametrize("sigma", [1.0, 3.0, 100.0])
@pytest.mark.parametrize(("length", "first"), [(0, 2), (1, 0), (4, 7), (9, 3)])
def test_value_and_gradient_are_those_of_the_smooth_window(length, first, sigma):
    op, mask = window(length / 9, first / 9, sigma)
    torch.testing.assert_close(mask.detach(), smooth(length / 9, first / 9, 9, sigma))
    weight, h = drawn(9), 1e-6

    def moved(dw, ds):
        return float((weight * smooth(length / 9 + dw, first / 9 + ds, 9, sigma)).sum())

    (weight * mask).sum().backward()
    by_width, by_start = float(op.widths.grad[0, 0]), float(op.starts.grad[0, 0])
    assert by_width == pytest.approx((moved(h, 0) - moved(-h, 0)) / (2 * h), rel=1e-4, abs=1e-6)
    assert by_start == pytest.approx((moved(0, h) - moved(0, -h)) / (2 * h), rel=1e-4, abs=1e-6)
    if length == 0:
        assert by_width != 0  # a window that has vanished can come back


def test_widths_are_rounded_to_whole_places():
    torch.testing.assert_close(window(0.36, 0.12, 1e9)[1], window(3 / 9, 1 / 9, 1e9)[1])


def test_windows_sharpen_and_narrow_and_empty_terms_go():
    model = small_model()
    corank.factorize(model, "gblr", target=0.1, threshold=10.0, sigma=50.0)
    start = operators(model)
    assert {op.sigma for op in start.values()} == {1.0}
    whole = [int((op.widths == 1).all(0).sum()) for op in start.values()]
    saving = [max(op.shape) / sum(op.shape) for op in start.values()]
    assert whole == [
        int(min(op.shape) * s / 2) for op, s in zip(start.values(), saving, strict=True)
    ]
    _, optimizer = begin(model, lr=1e-2)
    before = sum(float(op.widths.detach().mean()) for op in start.values())
    train(model, optimizer, range(TOTAL // 2))
    assert {op.sigma for op in operators(model).values()} == {1 + 49 / 2}
    train(model, optimizer, range(TOTAL // 2, TOTAL))
    done = operators(model)
    assert sum(float(op.widths.detach().mean()) for op in done.values()) < before
    for op in done.values():
        assert float(op.widths.detach().min()) >= 0
        assert 0 <= float(op.starts.detach().min()) <= float(op.starts.detach().max()) < 1
        places = (op.widths.detach() * torch.tensor(op.shape)[:, None]).round()
        assert bool((places > 0).all())
    assert sum(op.a.shape[0] for op in done.values()) < 16 + 20 + 20
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in model.parameters()}


def test_the_step_is_as_long_as_threshold_times_the_rate_until_the_target():
    model = small_model()
    corank.factorize(model, "gblr", targets=["4"], target=0.9, threshold=0.5, rate=0.5)
    control = corank.controller(model, total_steps=10)
    optimizer = torch.optim.SGD(control.parameter_groups(0.1))
    control.attach(optimizer)
    op = operators(model)["4"]
    was = op.widths.detach().clone()
    optimizer.step()  # without gradients: the proximal step alone, of none under the target
    torch.testing.assert_close(op.widths.data, was)
    other = small_model()
    corank.factorize(other, "gblr", targets=["4"], target=0.0, threshold=0.5, rate=0.5)
    control = corank.controller(other, total_steps=10)
    optimizer = torch.optim.SGD(control.parameter_groups(0.1))
    control.attach(optimizer)
    optimizer.step()
    torch.testing.assert_close(operators(other)["4"].widths.data, was - 0.5 * 0.5 * 0.1)


@pytest.mark.parametrize("wrong", [{"target": 2.0}, {"threshold": -1.0}, {"first_sigma": 0.0},
                                   {"rate": 0.0}])  # fmt: skip
def test_bad_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        corank.factorize(small_model(), "gblr", **wrong)
