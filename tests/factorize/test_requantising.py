"""LoQT: what it splits a weight into, when, and that merging changes nothing."""

import pytest
import torch

import corank
from corank.control.requantising import ends_interval
from corank.models import Site
from corank.operators import Dense, LowRank, Product, Quantised, Scaled, Sum
from corank.quantizers import to_normal_float
from corank.registry import METHODS
from corank.rewrites.projected import along_gradient, beside_codes

from ..adapters.small import loss, small_model
from .small import batches, begin, factorize, operators, train

SHAPES = [(20, 12), (12, 20), (16, 16)]
SITE = Site("s", "q", 0, (20, 12), False, "linear")
NF4 = to_normal_float(4, 8)
RANK, SCALE = 4, 0.5


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def split(shape, rounds):
    weight, gradient = normal(*shape), normal(*shape, seed=1)
    projection = along_gradient(gradient, RANK, torch.Generator())
    return weight, gradient, beside_codes(weight, projection, NF4, SITE, SCALE, rounds)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_projection_is_the_gradients_on_the_shorter_side(shape):
    _, gradient, op = split(shape, 0)
    u, _, vh = torch.linalg.svd(gradient)
    coarse, scaled = op.operators
    assert isinstance(scaled, Scaled)
    assert isinstance(scaled.operator, Product)
    b, p = scaled.operator.operators
    if shape[1] > shape[0]:
        b, p = p, b
    first = shape[1] <= shape[0]
    wanted = vh[:RANK] if first else u[:, :RANK]
    axis = 1 if first else 0
    flips = (wanted * p.dense()).sum(axis, keepdim=True).sign()  # singular vectors have no sign
    torch.testing.assert_close(p.dense(), NF4(wanted * flips, SITE).dense())
    assert [q.numel() for q in op.parameters() if q.requires_grad] == [RANK * max(shape)]
    assert not b.dense().any()
    assert torch.equal(coarse.dense(), NF4(normal(*shape), SITE).dense())


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_factor_are_those_of_the_alternation_done_literally(shape):
    weight, gradient, op = split(shape, 3)
    p = NF4(along_gradient(gradient, RANK, torch.Generator()), SITE).dense()
    current, tried = weight, []
    for _ in range(3):
        coarse = NF4(current, SITE).dense()
        if shape[1] <= shape[0]:
            low = torch.linalg.lstsq(p.mT, (weight - coarse).mT).solution.mT @ p
        else:
            low = p @ torch.linalg.lstsq(p, weight - coarse).solution
        tried.append(coarse + low)
        current = weight - low
    best = min(tried, key=lambda made: float((weight - made).norm()))
    torch.testing.assert_close(op.dense(), best)


@pytest.mark.parametrize("shape", SHAPES)
def test_more_rounds_never_lose_more(shape):
    losses = []
    for rounds in (0, 1, 3, 6):
        weight, _, op = split(shape, rounds)
        losses.append(float((weight - op.dense().detach()).norm()))
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < losses[0]


def test_intervals_are_those_of_the_published_schedule():
    for every, growth in ((3, 1.2), (10, 2.0), (5, 0.0)):
        ends, step, count = [], every, 0
        while step <= 200:
            ends.append(step)
            count += 1
            step += every + int(growth**count)
        assert [s for s in range(1, 201) if ends_interval(s, every, growth)] == ends


def test_a_training_goes_through_codes_merges_and_never_steps_where_it_merges():
    model, _ = factorize(METHODS["loqt"])
    _, optimizer = begin(model)
    x = batches(1)[0]
    forms, weights = [], []
    for step in range(8):
        before = {name: op.dense().detach().clone() for name, op in operators(model).items()}
        train(model, optimizer, [step])
        forms.append({type(op) for op in operators(model).values()})
        weights.append((before, {n: op.dense().detach() for n, op in operators(model).items()}))
    # every=3, growth 1.2: merged after steps 3 and 7, split in the step after
    assert forms == [{Sum}, {Sum}, {Dense}, {Sum}, {Sum}, {Sum}, {Dense}, {Sum}]
    for step in (3, 7):  # split, not moved: the change is what the codes could not hold
        for name, was in weights[step][0].items():
            now = weights[step][1][name]
            assert 0 < (now - was).norm() < 0.2 * was.norm()
    _, merged = weights[6]
    for name, op in operators(model).items():
        codes = [part for part in op.modules() if isinstance(part, Quantised)]
        assert {q.shape for q in codes} >= {merged[name].shape}
        assert not any(isinstance(part, LowRank) for part in op.modules())
    corank.merge(model)
    assert torch.isfinite(loss(model, x))


def test_the_gradient_is_that_of_the_merged_weight():
    plain, model = small_model(), factorize(METHODS["loqt"])[0]
    loss(plain, batches()[0]).backward()
    _, optimizer = begin(model)
    train(model, optimizer, [0])
    for name, op in operators(model).items():
        gradient = plain.get_parameter(f"{name}.weight").grad
        wanted = along_gradient(gradient, RANK, torch.Generator())
        parts = op.operators[1].operator.operators
        (held,) = (part for part in parts if isinstance(part, Quantised))
        torch.testing.assert_close(held.dense(), NF4(wanted, SITE).dense())


@pytest.mark.parametrize("bad", [{"every": 0}, {"growth": -1.0}, {"rounds": -1}, {"scale": 0.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1, 1, 0 and 0, and over 0"):
        METHODS["loqt"].recipe(bad)
