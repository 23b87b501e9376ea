"""Blocks that share others' weights."""

import copy

import pytest
import torch

import corank
from corank.adapters import adapted, adapters
from corank.models import read, survey
from corank.operators import Standardised
from corank.settings import block_influence, flexigpt
from corank.settings.sharing import distance

from ..adapters.test_sparse import llama


def data():
    generator = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(3, 64, (2, 7), generator=generator)} for _ in range(2)]


def test_influence_is_one_less_the_mean_cosine():
    model = llama(3).eval()
    hidden = [model(**batch, output_hidden_states=True) for batch in data()]
    influence = block_influence(model, data())
    for number in (0, 1):
        cosines = [
            torch.nn.functional.cosine_similarity(
                h.hidden_states[number], h.hidden_states[number + 1], dim=-1
            )
            for h in hidden
        ]
        expected = 1 - torch.stack(cosines).mean().item()
        assert influence[f"model.layers.{number}"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="no batch"):
        block_influence(model, [])


def test_padding_has_no_influence():
    model = llama(2)
    batch = data()[0]
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    padded = batch | {"attention_mask": mask}
    other = copy.deepcopy(padded)
    other["input_ids"][1, 4:] = 5
    assert block_influence(model, [padded]) == pytest.approx(block_influence(model, [other]))


def test_distance_is_that_of_the_truncated_matrices():
    torch.manual_seed(0)
    w, v = torch.randn(2, 6, 9).double()

    def truncated(m, rank):
        u, s, vh = torch.linalg.svd(m, full_matrices=False)
        return (u[:, :rank] * s[:rank]), vh[:rank]

    one, two = {"q": truncated(w, 2)}, {"q": truncated(v, 2)}
    near = (one["q"][0] @ one["q"][1]) - (two["q"][0] @ two["q"][1])
    left, right = truncated(near, 2)
    assert distance(one, two, 2) == pytest.approx(float((near - left @ right).norm()))


def test_replaced_blocks_are_others_and_an_adapter():
    model = llama(4)
    twin = copy.deepcopy(model)
    influence = block_influence(model, data())
    partners = flexigpt(model, data(), 2, rank=32, gamma=0.5)
    assert set(partners) == set(sorted(influence, key=influence.get)[:2])
    assert not set(partners) & set(partners.values())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    for path, other in partners.items():
        for end in ("mlp.down_proj", "self_attn.q_proj"):
            weight = adapted(model)[f"{path}.{end}"]
            assert weight.base is model.get_submodule(f"{other}.{end}").operator
            op = weight.adapter("default")
            inner = op.operator if isinstance(op, Standardised) else op
            was = twin.get_submodule(f"{path}.{end}").weight
            torch.testing.assert_close(inner.dense(), was, rtol=1e-3, atol=1e-4)  # full rank
            assert isinstance(op, Standardised) == (end == "mlp.down_proj")
        norms = [model.get_submodule(f"{p}.input_layernorm").weight for p in (path, other)]
        assert norms[0] is norms[1]
    assert trained
    assert all(any(n.startswith(path) for path in partners) for n in trained)
    model(**data()[0], labels=data()[0]["input_ids"]).loss.backward()
    assert all(model.get_parameter(n).grad is not None for n in trained)


def test_the_norm_is_the_published_one():
    model = llama(3)
    partners = flexigpt(model, data(), 1, rank=4, gamma=0.5)
    (path,) = partners
    layer = model.get_submodule(f"{path}.mlp.down_proj")
    x = torch.randn(5, 48)
    h = x @ layer.operator.adapter("default").operator.dense().T
    expected = 0.5 * (h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)


def test_counts_are_of_one_adapter_for_each_replaced_block():
    model = llama(3)
    before = sum(p.numel() for p in model.parameters())
    (path,) = flexigpt(model, data(), 1, rank=2)
    sites = [s for s in survey(model)[0] if s.name.startswith(path)]
    expected = sum(2 * sum(s.shape) for s in sites) + 2 * 32
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    held = adapters(model)["default"]
    assert held.recipe.count(list(held.sites.values())) == expected
    dense = sum(s.numel for s in sites)
    norms = 2 * 32
    assert sum(p.numel() for p in model.parameters()) == before - dense - norms + expected


def test_bad_counts_and_names_leave_the_model_alone():
    model = llama(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="count=2 is outside 1 to 1"):
        flexigpt(model, data(), 2)
    corank.adapt(model, "lora", rank=2)
    with pytest.raises(ValueError, match="already carries"):
        flexigpt(model, data(), 1)
    corank.adapters.delete(model, "default")
    assert list(model.state_dict()) == list(before)
    assert read(model, survey(model)[0][0]) is not None


def test_the_nearest_block_is_shared():
    model = llama(4)
    replaced = min(found := block_influence(model, data()), key=found.get)
    near = [path for path in found if path != replaced][-1]
    for end in ("mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj"):
        weight = model.get_submodule(f"{near}.{end}").weight
        weight.data = model.get_submodule(f"{replaced}.{end}").weight.data.clone()
    again = block_influence(model, data())
    partners = flexigpt(model, data(), 1, rank=4)
    if min(again, key=again.get) == replaced:
        assert partners == {replaced: near}
    else:
        assert partners == {near: replaced}
