"""Statistics of made-up calibration data, for laws on single weights."""

from __future__ import annotations

import torch

from corank.models import Site
from corank.operators import Dense
from corank.rewrites import Unit


def statistics(out: int, into: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * into, into, generator=g) * torch.logspace(0, 1, into) + 0.5
    y = torch.randn(4 * out, out, generator=g) * torch.logspace(0, 1, out)
    x, y = x.double(), y.double()
    return {
        "gram": x.mT @ x / len(x),
        "mean": x.mean(0),
        "abs_mean": x.abs().mean(0),
        "abs_max": x.abs().amax(0),
        "square_mean": x.square().mean(0),
        "output_gram": y.mT @ y / len(y),
        "fisher": torch.rand(out, into, generator=g).double() ** 4 + 1e-3,
        "gradient": torch.randn(out, into, generator=g).double(),
        "outliers": torch.tensor([into + 3, 0, 5]),
        "significant": torch.tensor([2 * into, 7]),
        "shift": torch.rand(out, into, generator=g) / 10,
        "output_cosines": torch.ones(1).double(),
        "tokens": torch.tensor(float(len(x))),
    }


class Declared(dict):
    """Statistics of which only the declared ones may be read."""

    def __init__(self, stats, needs):
        super().__init__({k: v for k, v in stats.items() if k in needs | {"tokens"}})


def unit(out: int, into: int, needs, dtype=torch.float64, count: int = 1, role="q") -> Unit:
    sites, ops = [], []
    for i in range(count):
        site = Site(f"layers.{i}.q_proj", role, i, (out, into), False, "linear", seed=3)
        site.stats = Declared(statistics(out, into, i), needs)
        w = torch.randn(out, into, generator=torch.Generator().manual_seed(i)).double()
        sites.append(site)
        ops.append(Dense((w / into**0.5).to(dtype)))
    return Unit(sites, ops)
