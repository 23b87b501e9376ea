"""The integral of the loss's gradient along the way to the codes, and what is spared for it."""

import copy

import pytest
import torch

import corank
from corank.calibration import batches
from corank.calibration.path import path_gradients
from corank.models import find_sites, read
from corank.operators import Sparse, quantise_uniform
from corank.probes import choose_detached
from corank.quantizers import round_to_nearest
from tests.verbs.models import tiny_llama, tiny_mlp, tokens, vectors


def loss(model, batch):
    return (model(batch) - batch.roll(1, 1)).square().mean()


def mean_loss(model, data):
    with torch.no_grad():
        return sum(float(loss(model, batch)) for batch in data) / len(data)


def test_the_integral_is_the_change_of_the_loss_and_the_model_stays():
    model, data = tiny_mlp(), vectors()
    sites, before = find_sites(model), copy.deepcopy(model.state_dict())
    weights = {s.name: read(model, s).dense().detach() for s in sites}
    ends = {name: quantise_uniform(w, 2, 8).dense() for name, w in weights.items()}
    slopes = path_gradients(model, sites, ends, batches(data), 24, loss)
    predicted = sum(float((slopes[n] * (ends[n] - weights[n])).sum()) for n in ends)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any("gradient" in site.stats for site in sites)
    moved = copy.deepcopy(model)
    for site in sites:
        moved.get_submodule(site.name).weight.data = ends[site.name]
    change = mean_loss(moved, data) - mean_loss(model, data)
    at_the_start = path_gradients(model, sites, weights, batches(data), 1, loss)
    first_order = sum(float((at_the_start[n] * (ends[n] - weights[n])).sum()) for n in ends)
    assert predicted == pytest.approx(change, rel=0.02)
    assert abs(first_order - change) > 5 * abs(predicted - change)
    with pytest.raises(ValueError, match="points must be at least 1"):
        path_gradients(model, sites, ends, batches(data), 0, loss)


def test_shares_are_kept_over_all_sites_and_places_differ():
    model, data = tiny_mlp(), batches(vectors())
    sites = find_sites(model)
    with torch.no_grad():
        model[0].weight[:6, :4] *= 30  # outliers in one layer only
    quantizer = round_to_nearest(2, 20)
    choose_detached(model, sites, data, loss, quantizer, (0.02, 0.01), 2, 3)
    outliers, significant = (
        {s.name: s.stats[name].tolist() for s in sites} for name in ("outliers", "significant")
    )
    assert sum(map(len, [*outliers.values(), *significant.values()])) == 2 * (12 + 6)
    assert len(outliers["0"]) > len(outliers["2"])
    for site in sites:
        places = outliers[site.name] + significant[site.name]
        assert len(set(places)) == len(places)
        sizes = read(model, site).dense().abs().flatten()
        spared = sizes[outliers[site.name]]
        assert torch.equal(spared, sizes.topk(len(spared)).values)


def test_significant_weights_spare_more_loss_than_as_many_of_the_largest():
    found = {}
    for shares in ({"outliers": 0.0, "significant": 0.04}, {"outliers": 0.04, "significant": 0.0}):
        model = tiny_mlp()
        corank.quantize(
            model, "requant", bits=2, group=20, data=vectors(), loss=loss, points=4, **shares
        )
        found[shares["significant"]] = mean_loss(model, vectors())
    plain = tiny_mlp()
    corank.quantize(plain, "round_to_nearest", bits=2, group=20)
    assert found[0.04] < mean_loss(plain, vectors())
    assert found[0.04] < found[0.0]


def test_requant_needs_a_loss_and_shares_that_can_be():
    model = tiny_mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="needs calibration data"):
        corank.quantize(model, "requant")
    with pytest.raises(ValueError, match="needs labels in the batches, or loss="):
        corank.quantize(model, "requant", data=vectors())
    with pytest.raises(ValueError, match="below 1 together"):
        corank.quantize(model, "requant", data=vectors(), outliers=0.9, significant=0.1)
    with pytest.raises(ValueError, match="must be at least 1"):
        corank.quantize(model, "requant", data=vectors(), steps=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_language_model_has_its_own_loss():
    model = tiny_llama()
    report = corank.quantize(model, "requant", data=tokens(), outliers=0.01, points=1, steps=1)
    assert any(isinstance(part, Sparse) for part in model.modules())
    kept = sum(part.values.numel() for part in model.modules() if isinstance(part, Sparse))
    numbers = [s.shape[0] * s.shape[1] for s in report.sites]
    assert kept == sum(int(0.01 * n) + int(0.0005 * n) for n in numbers)
