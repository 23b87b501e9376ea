"""Rounds of a federation."""

import pytest
import torch

import corank
from corank.adapters import adapted
from corank.settings import fedsa_lora

from ..adapters.small import loss, small_model, stir


def clients(count=3, method="lora", **params):
    models = [small_model() for _ in range(count)]
    for number, model in enumerate(models):
        corank.adapt(model, method, **({"rank": 2} | params))
        stir(model, seed=number)
    return models


def leaf(model, name, path="2"):
    return getattr(adapted(model)[path].adapter("default").operators[1].operator, name)


def test_right_factors_are_averaged_and_left_ones_stay():
    models = clients()
    a = [leaf(m, "a").detach().clone() for m in models]
    b = [leaf(m, "b").detach().clone() for m in models]
    sent = fedsa_lora(models, weights=[1, 1, 2])
    assert sent == 2 * (16 + 36 + 20)
    for number, model in enumerate(models):
        torch.testing.assert_close(leaf(model, "a").data, (a[0] + a[1] + 2 * a[2]) / 4)
        assert torch.equal(leaf(model, "b"), b[number])
        assert leaf(model, "a").requires_grad


def test_a_lone_client_learns_as_if_alone():
    (one,), (two,) = clients(1), clients(1)
    for model in (one, two):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, torch.ones(4, 16, dtype=torch.float64)).backward()
            optimizer.step()
            if model is one:
                fedsa_lora([model])
    assert torch.equal(leaf(one, "a"), leaf(two, "a"))


def test_other_adapters_say_what_they_share():
    models = clients(2, method="dora")
    fedsa_lora(models, share=["m"])
    first, second = (adapted(m)["0"].adapter("default").m for m in models)
    assert torch.equal(first, second)


def test_clients_that_do_not_match_are_refused_and_unchanged():
    models = clients(2)
    other = small_model()
    corank.adapt(other, "lora", rank=3)
    before = leaf(models[0], "a").clone()
    with pytest.raises(ValueError, match="client 1 does not hold"):
        fedsa_lora([models[0], other])
    with pytest.raises(ValueError, match="no leaf called z"):
        fedsa_lora(models, share=["z"])
    with pytest.raises(ValueError, match="one for each of 2"):
        fedsa_lora(models, weights=[1.0])
    with pytest.raises(ValueError, match="clients is empty"):
        fedsa_lora([])
    assert torch.equal(leaf(models[0], "a"), before)


@pytest.mark.parametrize("key", ["fedsa_lora", "loram", "flexigpt", "kshot_experts"])
def test_settings_are_listed_and_are_no_rewrites(key):
    assert key in {m.key for m in corank.methods("adapt")}
    with pytest.raises(ValueError, match=f"call corank.settings.{key}"):
        corank.adapt(small_model(), key)
