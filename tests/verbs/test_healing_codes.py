"""Healing what is stored in few bits: scales and codebooks train, codes stay, nothing is lost to
the rounding of the parameters' dtype."""

import copy

import pytest
import torch

import corank
from corank.models import find_sites, read
from corank.operators import Quantised, VectorQuantised
from tests.verbs.models import tiny_llama, tokens

DATA = tokens(12, 8)


def parts(model, kind):
    every = (part for site in find_sites(model) for part in read(model, site).modules())
    return [part for part in every if isinstance(part, kind)]


def distance(model, original):
    batches = tokens(4, seed=9)
    with torch.no_grad():
        return sum(
            float((model(**b).logits - original(**b).logits).square().sum()) for b in batches
        )


def test_scales_train_and_codes_stay():
    model = tiny_llama()
    original = copy.deepcopy(model)
    corank.quantize(model, "round_to_nearest", bits=2, group=16)
    before, first = copy.deepcopy(model), distance(model, original)
    corank.heal(model, original, DATA, steps=60)
    for was, is_now in zip(parts(before, Quantised), parts(model, Quantised), strict=True):
        assert torch.equal(was.codes, is_now.codes)
        assert not torch.equal(was.scale, is_now.scale)
        assert not is_now.scale.requires_grad
    with_scales = distance(model, original)
    corank.heal(before, original, DATA, steps=60, scales=False)
    norms_alone = distance(before, original)
    assert with_scales < 0.8 * norms_alone
    assert with_scales < 0.7 * first


def test_the_scales_of_quantised_scales_train():
    model = tiny_llama()
    original = copy.deepcopy(model)
    corank.quantize(model, "qlora", rank=2)
    doubly = [part for part in parts(model, Quantised) if isinstance(part.scale, Quantised)]
    assert doubly
    before = [part.scale.scale.detach().clone() for part in doubly]
    corank.heal(model, original, DATA, steps=2)
    assert not any(
        torch.equal(was, part.scale.scale) for was, part in zip(before, doubly, strict=True)
    )


def test_codebooks_train():
    model = tiny_llama()
    original = copy.deepcopy(model)
    corank.quantize(model, "realm", rank=2, bits=2, heal_steps=1, data=DATA)
    books = [part.codebooks.detach().clone() for part in parts(model, VectorQuantised)]
    assert books
    corank.heal(model, original, DATA, steps=2)
    after = [part.codebooks for part in parts(model, VectorQuantised)]
    assert not any(torch.equal(a, b) for a, b in zip(books, after, strict=True))


def test_norm_tweaking_leaves_scales_alone():
    model = tiny_llama()
    plain = copy.deepcopy(model)
    corank.quantize(plain, "gptq", bits=3, data=DATA)
    corank.quantize(model, "norm_tweaking", bits=3, data=DATA, heal_steps=3)
    for one, other in zip(parts(plain, Quantised), parts(model, Quantised), strict=True):
        assert torch.equal(one.scale, other.scale)
    assert not torch.equal(plain.model.norm.weight, model.model.norm.weight) or not torch.equal(
        plain.model.layers[0].input_layernorm.weight, model.model.layers[0].input_layernorm.weight
    )


def test_steps_smaller_than_the_rounding_of_bfloat16_add_up():
    model = tiny_llama().to(torch.bfloat16)
    original = copy.deepcopy(model)
    corank.quantize(model, "round_to_nearest", bits=2, group=16)
    before = copy.deepcopy(model.state_dict())
    corank.heal(model, original, DATA, steps=40, learning_rate=6e-4)
    norms = [name for name in before if "layernorm" in name]
    moved = [(model.state_dict()[name] - before[name]).abs().max() for name in norms]
    assert norms
    assert min(moved) > 2**-8  # a step of 6e-4 beside a one is nothing in bfloat16


def test_gradients_left_from_before_are_no_part_of_healing():
    results = []
    for left in (False, True):
        model = tiny_llama()
        original = copy.deepcopy(model)
        corank.compress(model, "svd", keep=0.4)
        if left:
            model(**DATA[0]).logits.square().sum().backward()
        corank.heal(model, original, DATA, steps=2)
        results.append(model.state_dict())
        assert all(p.grad is None for p in model.model.layers.parameters())
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


def test_a_failed_healing_gives_scales_back():
    model = tiny_llama()
    original = copy.deepcopy(model)
    corank.quantize(model, "round_to_nearest", bits=2, group=16)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="the loss is"):
        corank.heal(model, original, DATA, steps=50, learning_rate=1e20)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
