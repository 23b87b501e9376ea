"""Layers that share their weights, in whole models."""

import pytest
import torch

import corank
from corank.models import find_sites, read
from corank.operators import Dense, LowRank

from .models import tiny_llama, tokens


def operators(model):
    return {s.name.removeprefix("model."): read(model, s) for s in find_sites(model, "all")}


@pytest.fixture
def sandwich():
    model = tiny_llama(num_hidden_layers=5, tie_word_embeddings=True)
    before = operators(model)
    report = corank.compress(model, "subformer", rank=8, targets="all")
    return model, before, report


def test_all_layers_but_the_first_and_the_last_share_and_embeddings_are_factors(sandwich):
    model, before, report = sandwich
    found = operators(model)
    for place in ("self_attn.q_proj", "mlp.down_proj"):
        names = [f"layers.{i}.{place}" for i in range(5)]
        first, *middle, last = (found[name] for name in names)
        assert {id(op.weight) for op in middle} == {id(middle[0].weight)}
        wanted = sum(before[name].dense() for name in names[1:-1]) / 3
        torch.testing.assert_close(middle[0].dense(), wanted)
        for op, name in ((first, names[0]), (last, names[-1])):
            assert torch.equal(op.dense(), before[name].dense())
    table = found["embed_tokens"]
    assert isinstance(table, LowRank)
    u, s, vh = torch.linalg.svd(before["embed_tokens"].dense())
    torch.testing.assert_close(table.dense(), u[:, :8] * s[:8] @ vh[:8], rtol=1e-4, atol=1e-6)
    leaves = {id(leaf): leaf for op in found.values() for leaf in op.parameters()}
    assert report.totals["bytes_after"] == sum(leaf.nbytes for leaf in leaves.values())


def test_it_is_saved_once_and_read_bit_for_bit(sandwich, tmp_path):
    from transformers import AutoModelForCausalLM

    model, ids = sandwich[0], tokens(1)[0]["input_ids"]
    corank.save(model, tmp_path)
    stored = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    leaves = {id(p): p for p in model.parameters()}.values()
    assert stored < 1.1 * sum(p.nbytes for p in leaves) + 20_000
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    found = operators(again)
    assert found["layers.1.mlp.up_proj"].weight is found["layers.3.mlp.up_proj"].weight


def test_healing_moves_the_shared_weight_for_all():
    model = tiny_llama(num_hidden_layers=4)
    corank.compress(model, "subformer", keep=0.8, data=tokens(), heal_minutes=0.005)
    found = operators(model)
    one, two = (found[f"layers.{i}.mlp.up_proj"] for i in (1, 2))
    assert one.weight is two.weight


@pytest.mark.parametrize("keep", [0.65, 0.8])
def test_a_budget_is_met_and_shares_first_what_is_most_alike(keep):
    model = tiny_llama(num_hidden_layers=5)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.copy_(model.model.layers[0].mlp.up_proj.weight)
    report = corank.compress(model, "subformer", keep=keep)
    assert report.totals["bytes_after"] <= keep * report.totals["bytes_before"]
    found = operators(model)
    assert found["layers.1.mlp.up_proj"].weight is found["layers.3.mlp.up_proj"].weight
    assert all(isinstance(op, Dense) for op in found.values())


def test_a_budget_below_the_shared_layers_names_the_smallest():
    model = tiny_llama()
    with pytest.raises(ValueError, match="smallest"):
        corank.compress(model, "subformer", keep=0.6)
    assert all(type(op) is Dense for op in operators(model).values())


def test_what_already_stores_less_than_the_mean_would_is_left_alone():
    model = tiny_llama(num_hidden_layers=4)
    corank.compress(model, "svd", rank=2)
    before = {name: op.dense() for name, op in operators(model).items()}
    corank.compress(model, "subformer", keep=1.0)
    assert all(torch.equal(op.dense(), before[name]) for name, op in operators(model).items())
