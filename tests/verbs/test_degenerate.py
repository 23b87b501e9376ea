"""Weights and inputs that say nothing, or the same everywhere: ordinary for every method."""

import math

import pytest
import torch
from torch import nn

import corank
from corank.registry import METHODS

#: Laws of methods that need experts, heads, layers that share, pairs of roles or an original.
OTHERS = {"setting", "encodes", "shares_layers", "merges", "shares_heads", "shared_bases", "pairs"}
#: Those that need norms or blocks.
MORE = {"norm_tweaking", "signround"}
KEYS = [
    m.key for m in METHODS.values()
    if m.area in ("compress", "quantize") and not m.laws & OTHERS and m.key not in MORE
]  # fmt: skip


def degenerate(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64), nn.Linear(64, 32))
    with torch.no_grad():
        match kind:
            case "zero":
                model[2].weight.zero_()
            case "constant":
                model[2].weight.fill_(0.5)
            case "tiny":
                model[2].weight.mul_(1e-30)
            case "of rank one":
                model[2].weight.copy_(torch.randn(64, 1) @ torch.randn(1, 32))
            case "inputs of zero":
                model[0].weight.zero_()
                model[0].bias.fill_(-1)
    return model


@pytest.mark.parametrize("kind", ["zero", "constant", "tiny", "of rank one", "inputs of zero"])
@pytest.mark.parametrize("key", KEYS)
def test_every_method_takes_degenerate_weights_and_inputs(key, kind):
    model, registered = degenerate(kind), METHODS[key]
    x = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    before = model(x)
    verb = getattr(corank, registered.area)
    options = {"loss": lambda model, batch: model(batch).square().mean()}
    if registered.recipe({}).heal:
        options["heal_steps"] = 1
    if registered.area == "quantize" and "rank" in registered.parameters:
        options["rank"] = 4
    elif registered.area == "compress" and "two_of_four" not in registered.laws:
        options["keep"] = 0.7
    report = verb(model, key, data=[x[:24], x[24:]], **options)
    after = model(x)
    assert torch.isfinite(after).all()
    assert (after - before).norm() <= 1.5 * before.norm()
    for row in report.sites:
        assert row.error is None or (math.isfinite(row.error) and row.error >= 0), row
