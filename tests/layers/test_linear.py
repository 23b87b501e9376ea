from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corank.layers import Linear
from corank.operators import Dense, Diagonal, LowRank, Operator, Product, Sum


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _operators() -> dict[str, Operator]:
    low_rank = LowRank(_random(6, 3), _random(3, 5, seed=1), gate=_random(3, seed=2))
    return {
        "Dense": Dense(_random(6, 5)),
        "LowRank": low_rank,
        "Sum": Sum(Dense(_random(6, 5)), low_rank),
        "Product": Product(Diagonal(_random(6)), low_rank),
    }


@pytest.mark.parametrize("kind", _operators())
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_forward_and_weight_are_the_dense_layers(kind: str, transposed: bool, biased: bool) -> None:
    op, bias = _operators()[kind], _random(6, seed=3) if biased else None
    layer, x = Linear(op, bias, transposed), _random(2, 4, 5, seed=4)
    torch.testing.assert_close(layer(x), F.linear(x, op.dense(), bias))
    assert (layer.in_features, layer.out_features) == (5, 6)
    expected = op.dense().T if transposed else op.dense()
    assert layer.weight.shape == expected.shape
    torch.testing.assert_close(layer.weight + 0, expected)


@pytest.mark.parametrize("kind", _operators())
def test_state_names_and_copies(kind: str) -> None:
    layer = Linear(_operators()[kind], _random(6))
    names = list(layer.state_dict())
    assert names[0] == "bias"
    assert names[1:] == [f"operator.{name}" for name in layer.operator.state_dict()]
    twin, x = copy.deepcopy(layer), _random(2, 5)
    expected = layer(x)
    for parameter in layer.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(twin(x), expected)


@pytest.mark.parametrize("kind", _operators())
@pytest.mark.parametrize("biased", [False, True])
def test_autocast_gives_what_a_dense_layer_gives(kind: str, biased: bool) -> None:
    layer = Linear(_operators()[kind], _random(6) if biased else None)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(_random(2, 5))
        assert layer.weight.dtype == torch.float32
        assert (layer.weight + 0).dtype == torch.float32
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", _operators())
def test_compiles_with_its_gradient(kind: str) -> None:
    torch._dynamo.reset()
    layer = Linear(_operators()[kind], _random(6)).requires_grad_(True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = _random(4, 5)
    grads = []
    for module in (layer, compiled):
        layer.zero_grad()
        module(x).square().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(*grads)


def test_the_lazy_weight_costs_nothing_until_used() -> None:
    calls = []
    op = LowRank(_random(6, 3), _random(3, 5))
    layer = Linear(op)
    op.dense = lambda: calls.append(1) or op.b @ op.a  # type: ignore[method-assign]
    weight = layer.weight
    assert isinstance(weight, Tensor)
    assert (weight.dtype, weight.device, tuple(weight.shape)) == (
        torch.float32,
        torch.device("cpu"),
        (6, 5),
    )
    assert (weight.size(0), weight.ndim, weight.numel()) == (6, 2, 30)
    assert not weight.is_meta
    assert weight.is_floating_point()
    assert calls == []
    torch.testing.assert_close(F.linear(_random(2, 5), weight), layer(_random(2, 5)))
    assert calls == [1]


def test_gradient_flows_through_the_weight() -> None:
    layer = Linear(LowRank(_random(6, 3), _random(3, 5))).requires_grad_(True)
    (layer.weight * _random(6, 5)).sum().backward()
    torch.testing.assert_close(layer.operator.b.grad, _random(6, 5) @ layer.operator.a.T)


def test_a_dense_weight_is_the_parameter_itself() -> None:
    layer = Linear(Dense(_random(6, 5)))
    assert layer.weight is layer.operator.weight
    with torch.no_grad():
        layer.weight.zero_()
    assert layer(_random(2, 5)).abs().sum() == 0


def test_a_bias_that_is_a_parameter_is_shared() -> None:
    bias = nn.Parameter(_random(6))
    assert Linear(Dense(_random(6, 5)), bias).bias is bias
    assert not Linear(Dense(_random(6, 5)), bias.detach()).bias.requires_grad
    with pytest.raises(ValueError, match=r"Linear.bias must be floating point of shape \(6,\)"):
        Linear(Dense(_random(6, 5)), _random(5))
    with pytest.raises(ValueError, match="int64"):
        Linear(Dense(_random(6, 5)), torch.arange(6))


def test_runs_on_the_meta_device() -> None:
    op = LowRank(torch.empty(6, 3, device="meta"), torch.empty(3, 5, device="meta"))
    layer = Linear(op)
    assert layer(torch.empty(2, 5, device="meta")).shape == (2, 6)
    assert layer.weight.is_meta
    assert (layer.weight + 0).shape == (6, 5)
