from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from corank.layers import Convolution, convolve
from corank.layers import convolution as module_under_test
from corank.operators import Dense, Diagonal, LowRank, Operator, Polyadic, Product, Scaled, Sum


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _operators(*kernel: int) -> dict[str, Operator]:
    columns = 4 * prod(kernel)
    gate, mask = _random(3, seed=2), torch.tensor([True, False, True])
    low_rank = LowRank(_random(6, 3), _random(3, columns, seed=1), gate, mask)
    return {
        "Dense": Dense(_random(6, columns)),
        "LowRank": low_rank,
        "Sum": Sum(Dense(_random(6, columns, seed=5)), low_rank),
        "Scaled": Scaled(low_rank, -0.5),
        "Product": Product(Diagonal(_random(6)), low_rank),
        "Columns": Product(Dense(_random(6, columns)), Diagonal(_random(columns))),
        "Polyadic": Polyadic(*(Dense(_random(n, 3, seed=n)) for n in (6, 4, *kernel))),
    }


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "same": {"kernel_size": 4, "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "circular same": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "pointwise": {"kernel_size": 1},
}
LOPSIDED = {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (1, 3)}


def _reference(dimensions: int, geometry: dict[str, Any]) -> nn.Module:
    kind = nn.Conv1d if dimensions == 1 else nn.Conv2d
    return kind(4, 6, **geometry)


def _layer(conv: Any, op: Operator) -> Convolution:
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return Convolution(op, conv.bias, **{name: getattr(conv, name) for name in names})


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kind", _operators())
@pytest.mark.parametrize(
    ("geometry", "dimensions"), [*((g, d) for g in GEOMETRIES for d in (1, 2)), ("lopsided", 2)]
)
def test_equals_the_convolution_with_the_dense_kernel(
    kind: str, geometry: str, dimensions: int
) -> None:
    conv: Any = _reference(dimensions, GEOMETRIES.get(geometry, LOPSIDED))
    op = _operators(*conv.kernel_size)[kind]
    conv.weight.data = op.dense().view(conv.weight.shape)
    layer = _layer(conv, op)
    x = _random(2, 4, *[9, 8][:dimensions], seed=3)
    torch.testing.assert_close(layer(x), conv(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.weight + 0, conv.weight.detach())
    assert (layer.in_channels, layer.out_channels) == (4, 6)


@pytest.mark.parametrize("kind", ["LowRank", "Scaled", "Product", "Polyadic"])
def test_a_factored_convolution_builds_no_dense_kernel(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(op: Operator) -> Tensor:
        raise AssertionError("a dense kernel was built")

    monkeypatch.setattr(module_under_test, "dense_of", refuse)
    layer = _layer(_reference(2, {"kernel_size": 3}), _operators(3, 3)[kind])
    layer(_random(2, 4, 9, 8))
    with pytest.raises(AssertionError):
        convolve(Dense(_random(6, 36)), _random(2, 4, 9, 8), layer.geometry)


@pytest.mark.parametrize("kind", _operators(3, 3))
def test_compiles_with_its_gradient(kind: str) -> None:
    torch._dynamo.reset()
    layer = _layer(_reference(2, {"kernel_size": 3}), _operators(3, 3)[kind]).requires_grad_(True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = _random(2, 4, 9, 8)
    grads = []
    for module in (layer, compiled):
        layer.zero_grad()
        module(x).square().mean().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(*grads)


def test_autocast_gives_half_precision() -> None:
    layer = _layer(_reference(2, {"kernel_size": 3}), _operators(3, 3)["LowRank"])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(_random(2, 4, 9, 8)).dtype == torch.bfloat16


def test_columns_must_fit_the_kernel() -> None:
    with pytest.raises(ValueError, match="35 columns are no multiple of the 9 taps"):
        _layer(_reference(2, {"kernel_size": 3}), Dense(_random(6, 35)))
