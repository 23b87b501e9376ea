"""What errors of unlike sites are weighed by."""

import pytest
import torch

import corank
from corank.allocation import Candidate
from corank.allocation.weights import by_size
from corank.models import Site
from corank.operators import Dense
from corank.registry import METHODS
from corank.rewrites import Unit

from ..verbs.models import tiny_mlp, vectors


def test_errors_are_relative_to_what_differs_between_inputs():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=g, dtype=torch.float64) + 9.0
    w = torch.randn(4, 6, generator=g, dtype=torch.float64)
    family = METHODS["gptq"].recipe({}).family
    found = {}
    for known in (True, False):
        here = Site("w", "q", 0, (4, 6), False, "linear")
        here.stats["gram"] = (x.T @ x / 500).float()
        if known:
            here.stats["mean"] = x.mean(0).float()
        unit = Unit([here], [Dense(w.float())])
        (found[known],) = by_size([Candidate(unit, family.menu(unit))], family)
    outputs = x @ w.T
    assert found[True] == pytest.approx(1 / float(outputs.var(0, correction=0).sum()), rel=1e-3)
    assert found[False] == pytest.approx(1 / float(outputs.square().sum(1).mean()), rel=1e-3)


def test_the_mean_is_gathered_where_errors_are_compared_so():
    several = METHODS["gptq"].recipe({"bits": [2, 4]})
    assert several.needs == {"gram", "mean"}
    assert METHODS["gptq"].recipe({"bits": 4}).needs == {"gram"}
    assert METHODS["round_to_nearest"].recipe({"bits": [2, 4]}).needs == frozenset()
    model = tiny_mlp()
    report = corank.compress(model, "svd_llm", keep=0.5, allocate="relative", data=vectors())
    assert report.totals["keep"] <= 0.5
