"""`torch.compile` of the step."""

import pytest
import torch
from torch import nn

from .small import make


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def path(key, wrap):
    """The weights after 12 steps, and the graphs made in the later half of them."""
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=g)) for shape in [(8, 12), (8, 12), (7,)]]
    optimizer = make(key, params, weight_decay=0.1)
    step = wrap(optimizer.step)
    for count in range(12):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g)
        if count == 6:
            before = graphs()
        step()
    return params, graphs() - before


@pytest.mark.parametrize(
    ("key", "backend"),
    [
        ("galore", "eager"),
        pytest.param("fira", "aot_eager", marks=pytest.mark.slow),
        pytest.param("apollo", "aot_eager", marks=pytest.mark.slow),
        pytest.param("galore", "inductor", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_step_is_the_same_and_settles(key, backend):
    torch._dynamo.reset()
    found, late = path(key, lambda step: torch.compile(step, backend=backend))
    assert graphs() > 0
    assert late == 0
    for p, q in zip(path(key, lambda step: step)[0], found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()
