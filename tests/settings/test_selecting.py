"""Small models that start from larger ones' weights."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.settings import weight_selection

from ..verbs.models import tiny_bert, tiny_llama, tokens


def small(**options):
    return tiny_llama(
        1, hidden_size=16, intermediate_size=36, num_hidden_layers=1, head_dim=4, **options
    )


def large(**options):
    return tiny_llama(2, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
                      **options)  # fmt: skip


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evenly_spaced_elements_of_the_first_layers_are_taken():
    one, two = small(), large()
    filled = weight_selection(one, two)
    assert set(filled) == {name for name, _ in one.named_parameters()}
    q, up = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
    assert filled[up] == (48, 32)
    whole = two.state_dict()
    assert torch.equal(one.state_dict()[q], whole[q][::2, ::2])
    rows = [i * 48 // 36 for i in range(36)]  # three of every four, where the side does not divide
    assert rows[:5] == [0, 1, 2, 4, 5]
    assert torch.equal(one.state_dict()[up], whole[up][rows][:, ::2])
    table = "model.embed_tokens.weight"
    assert torch.equal(one.state_dict()[table], whole[table][:, ::2])
    assert one(**tokens(1)[0]).logits.isfinite().all()


def test_a_model_of_the_same_size_becomes_the_larger_one():
    one, two = large(tie_word_embeddings=True), large(tie_word_embeddings=True)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    weight_selection(one, two)
    assert torch.equal(one(**tokens(1)[0]).logits, two(**tokens(1)[0]).logits)
    assert one.lm_head.weight is one.model.embed_tokens.weight


def test_running_statistics_are_selected_and_what_is_left_out_stays():
    def net(width, classes):
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(),
                             nn.Linear(width, classes))  # fmt: skip

    one, two = net(4, 7).to(torch.bfloat16), net(8, 5)
    two(torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    head = one[3].weight.clone()
    filled = weight_selection(one, two, leave_out=["3"])
    assert set(filled) == {f"0.{n}" for n in ("weight", "bias")} | {
        f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var")
    }
    assert torch.equal(one[1].running_mean, two[1].running_mean[::2].to(torch.bfloat16))
    assert torch.equal(one[0].weight, two[0].weight[::2].to(torch.bfloat16))
    assert torch.equal(one[3].weight, head)
    assert one[0].weight.requires_grad


@pytest.mark.parametrize(
    ("donor", "message"),
    [
        (tiny_bert, r"has no model\.embed_tokens.weight: give one of the same family"),
        (lambda: tiny_llama(hidden_size=8, head_dim=4), r"\(64, 8\).*cannot be selected"),
        (lambda: corank_svd(large()), "plain models"),
        (lambda: spoilt(large()), r"norm\.weight of the larger model has NaN"),
    ],
    ids=["another family", "a smaller one", "factors", "not finite"],
)
def test_what_cannot_be_selected_from_is_refused_and_nothing_changes(donor, message):
    one = small()
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(ValueError, match=message):
        weight_selection(one, donor())
    assert unchanged(one, before)


def corank_svd(model):
    corank.compress(model, "svd", keep=0.5)
    return model


def spoilt(model):
    model.model.norm.weight.data[3] = torch.nan
    return model


def test_a_misspelt_name_to_leave_out_is_refused():
    with pytest.raises(ValueError, match=r"unknown module or parameter 'lm_haed'.*'lm_head'"):
        weight_selection(small(), large(), leave_out=["lm_haed"])


def test_it_is_listed_and_the_verb_says_what_to_call():
    assert "weight_selection" in [m.key for m in corank.methods("compress")]
    for method in ("weight_selection", ["svd", "weight_selection"]):
        with pytest.raises(ValueError, match=r"call corank\.settings\.weight_selection"):
            corank.compress(large(), method, keep=0.5)
