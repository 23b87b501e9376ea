"""Finding the single weights that make a model's largest activations, and keeping them."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import corank
from corank.calibration import batches
from corank.models import find_sites, read
from corank.operators import Sparse
from corank.probes import super_weights
from corank.probes.super_weights import Largest, _largest
from tests.verbs.models import tiny_mlp, tokens, vectors

ROW, COLUMN = 7, 11
SITE = "model.layers.1.mlp.down_proj"


def llama(planted=True):
    """Four layers; in the second one weight meets one large hidden number."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    if planted:
        mlp = model.model.layers[1].mlp
        with torch.no_grad():
            mlp.gate_proj.weight[COLUMN] *= 8
            mlp.up_proj.weight[COLUMN] *= 8
            mlp.down_proj.weight[ROW, COLUMN] = 2.0
            mlp.up_proj.weight[20] *= 0.01
            mlp.down_proj.weight[3, 20] = -4.0  # larger, and of no consequence
    return model


def test_the_weight_behind_the_spike_is_found_and_the_model_stays():
    model = llama()
    before = copy.deepcopy(model.state_dict())
    found = super_weights(model, find_sites(model), batches(tokens()))
    assert found.pop(SITE) == [(ROW, COLUMN)]
    assert not any(found.values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    plain = llama(planted=False)
    assert not any(super_weights(plain, find_sites(plain), batches(tokens())).values())


def test_the_input_is_that_of_the_token_with_the_largest_output():
    x, y = torch.zeros(3, 4), torch.zeros(3, 5)
    x[0, 1], x[2, 3], y[2, 4], y[0, 2] = 9.0, -8.0, -7.0, 6.0
    assert _largest(x, y) == Largest(7.0, 8.0, 4, 3)


def test_a_second_one_is_found_behind_the_first():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[5, COLUMN] = 1.5
    found = super_weights(model, find_sites(model), batches(tokens()))[SITE]
    assert found == [(ROW, COLUMN), (5, COLUMN)]
    once = super_weights(model, find_sites(model), batches(tokens()), most=1)[SITE]
    assert once == found[:1]


def test_super_weights_stay_and_other_outliers_are_clipped():
    model, original, plain = llama(), llama(), llama()
    corank.quantize(model, "super_weight", bits=4, data=tokens())
    corank.quantize(plain, "round_to_nearest", bits=4, group=1024)
    sites = {s.name: s for s in find_sites(model)}
    held = {name: [*read(model, site).modules()] for name, site in sites.items()}
    assert [n for n, parts in held.items() if any(isinstance(p, Sparse) for p in parts)] == [SITE]
    made = read(model, sites[SITE]).dense()
    assert made[ROW, COLUMN] == 2.0
    assert made[3, 20] > -4.0
    wanted = original.get_submodule(SITE).weight
    coarse = read(plain, sites[SITE]).dense()
    assert (made[ROW] - wanted[ROW]).norm() < 0.2 * (coarse[ROW] - wanted[ROW]).norm()


def test_what_cannot_be_is_refused():
    for options, why in (
        ({"spike": 1.0}, "must be above 1"),
        ({"most": 0}, "at least 1"),
        ({"deviations": [0.0]}, "numbers above 0"),
    ):
        with pytest.raises(ValueError, match=why):
            corank.quantize(tiny_mlp(), "super_weight", data=vectors(), **options)
    with pytest.raises(ValueError, match="needs calibration data"):
        corank.quantize(tiny_mlp(), "super_weight")
