"""Aiming at wanted outputs, against least squares done on the data themselves."""

import pytest
import torch
from torch import nn

from corank.engine.aim import aim
from corank.models import find_sites, read
from corank.rewrites import Unit

ROWS, IN, OUT = 400, 6, 5


def aimed(centred, bias, wanted=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, OUT, bias=bias).double())
    (site,) = find_sites(model)
    x = torch.randn(ROWS, IN).double() + 2
    y = model(x).detach()
    t = y if wanted is None else y + wanted(x)
    site.stats = {
        "gram": x.mT @ x / ROWS,
        "mean": x.mean(0),
        "wanted_cross": t.mT @ x / ROWS,
        "wanted_mean": t.mean(0),
    }
    unit = Unit([site], [read(model, site)])
    return model[0], x, t, aim(model, unit, [centred]).ops[0].dense()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_nothing_changes_where_nothing_was_lost(centred, bias):
    layer, _, _, found = aimed(centred, bias)
    torch.testing.assert_close(found, layer.weight.detach())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_the_weight_is_the_least_squares_fit(centred, bias):
    shift = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3)).double()
    layer, x, t, found = aimed(centred, bias, lambda x: (x @ shift.mT).sin())
    if centred:
        x, t = x - x.mean(0), t - t.mean(0)
    elif bias:
        t = t - layer.bias.detach()
    expected = torch.linalg.lstsq(x, t).solution.mT
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)  # up to the ridge


def test_a_site_without_wanted_outputs_is_left_alone():
    model = nn.Sequential(nn.Linear(IN, OUT))
    (site,) = find_sites(model)
    unit = Unit([site], [read(model, site)])
    assert aim(model, unit, [True]) is unit
