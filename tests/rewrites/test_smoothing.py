"""Scaled columns: what the rewrite within sees, and which scales stay."""

import pytest
import torch

from corank.errors import SiteError
from corank.metrics import second_moment
from corank.models import Site
from corank.operators import Dense
from corank.rewrites import Family, Unit, smoothing

IN, OUT = 6, 4


def given(kind="linear"):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, IN, generator=g, dtype=torch.float64)
    site = Site("layer", "q", 0, (OUT, IN), False, kind)
    site.stats = statistics(x)
    w = torch.randn(OUT, IN, generator=g, dtype=torch.float64)
    return x, Unit([site], [Dense(w)])


def statistics(x):
    return {
        "gram": x.mT @ x / len(x), "mean": x.mean(0), "abs_mean": x.abs().mean(0),
        "abs_max": x.abs().amax(0), "square_mean": x.square().mean(0),
    }  # fmt: skip


def test_the_rewrite_within_sees_scaled_weights_and_inputs_and_the_best_scales_stay():
    x, unit = given()
    seen, weight = [], unit.ops[0].dense()
    scales = [torch.linspace(1, k, IN, dtype=torch.float64) for k in (2, 3, 4)]

    def build(inner, size):
        seen.append((inner.ops[0].dense(), dict(inner.sites[0].stats)))
        off = 0.0 if len(seen) == 2 else 1.0  # only the second scales make it exact
        return [Dense(inner.ops[0].dense() + off)]

    within = Family(lambda u: None, build, lambda u, size: [(OUT * IN, 8 * OUT * IN)])
    family = smoothing(within, lambda w, stats: scales, second_moment(), frozenset())
    (op,) = family.build(unit, 0)
    torch.testing.assert_close(op.dense(), weight)
    torch.testing.assert_close(op.operators[1].diagonal, 1 / scales[1])
    assert family.counts(unit, 0) == [(op.numel(), op.bytes())]
    for scale, (scaled, stats) in zip(scales, seen, strict=True):
        torch.testing.assert_close(scaled, weight * scale)
        for name, value in statistics(x / scale).items():
            torch.testing.assert_close(stats[name], value)
    assert set(unit.sites[0].stats) == set(statistics(x))


def test_an_embedding_is_refused():
    _, unit = given("embedding")
    within = Family(lambda u: None, lambda u, size: list(u.ops), lambda u, size: [(0, 0)])
    family = smoothing(within, lambda w, s: [torch.ones(IN)], second_moment(), frozenset())
    with pytest.raises(SiteError, match=r"layer .*embedding"):
        family.build(unit, 0)
