"""Training on a pruned twin, and recovering what it learnt."""

import copy

import pytest
import torch

import corank
from corank.adapters import adapted
from corank.errors import SiteError
from corank.settings import loram, prune_channels

from ..adapters.test_sparse import llama
from ..models.families import FAMILIES


def ids(count=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 64, (count, 7), generator=generator)


def zeroed(model, kept):
    """The large model, its removed rows and columns set to zero."""
    model = copy.deepcopy(model)
    for name, (rows, columns) in kept.items():
        weight = model.get_submodule(name).weight.data
        for axis, index in ((0, rows), (1, columns)):
            if index is not None:
                gone = [i for i in range(weight.shape[axis]) if i not in set(index.tolist())]
                weight.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 0.0)
    return model


@pytest.mark.parametrize("select", ["random", "weight"])
@pytest.mark.parametrize("head_size", [None, 8])
def test_the_pruned_twin_is_the_model_without_these_channels(select, head_size):
    model = llama().double()
    small = prune_channels(model, 0.5, select=select, head_size=head_size)
    mlp = small.model.model.layers[0].mlp
    assert (mlp.gate_proj.out_features, mlp.down_proj.in_features) == (24, 24)
    if head_size:
        attention = small.model.model.layers[0].self_attn
        assert (attention.q_proj.out_features, attention.k_proj.out_features) == (16, 8)
    expected = zeroed(model, small.kept)(ids()).logits
    torch.testing.assert_close(small.model(ids()).logits, expected)
    assert model.model.layers[0].mlp.gate_proj.out_features == 48


@pytest.mark.parametrize("head_size", [None, 8])
def test_a_recovered_adapter_does_for_the_large_model_what_it_did_for_the_small(head_size):
    model = llama().double()
    small = prune_channels(model, 0.5, head_size=head_size, skip_first=1)
    assert all(".layers.1." in name for name in small.kept)
    corank.adapt(small.model, "lora", rank=2, alpha=4.0)
    for weight in adapted(small.model).values():
        weight.operators[0].operators[1].operator.b.data.normal_()
    loram(model, small)
    for path, weight in adapted(model).items():
        rows, columns = small.kept.get(path, (None, None))
        change = weight.adapter("default").dense() - weight.base.dense()
        theirs = adapted(small.model)[path]
        expected = torch.zeros_like(change)
        every = [torch.arange(n) if i is None else i
                 for i, n in zip((rows, columns), change.shape, strict=True)]  # fmt: skip
        expected[every[0][:, None], every[1]] = (
            theirs.adapter("default").dense() - theirs.base.dense()
        )
        torch.testing.assert_close(change, expected)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in small.model.named_parameters() if p.requires_grad}
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fresh = llama()
    assert numbers == corank.adapt(fresh, "lora", rank=2).totals["trainable"]
    before = model(ids()).logits.detach()
    corank.merge(model)
    torch.testing.assert_close(model(ids()).logits, before)


def test_any_adapter_that_adds_is_recovered():
    model = llama()
    small = prune_channels(model, 0.5)
    corank.adapt(small.model, "lift", rank=1, filter_rank=2, interval=None)
    values = adapted(small.model)["model.layers.0.mlp.down_proj"].adapter("default").operators[1]
    values.values.data.normal_()
    loram(model, small)
    weight = adapted(model)["model.layers.0.mlp.down_proj"]
    change = weight.adapter("default").dense() - weight.base.dense()
    columns = small.kept["model.layers.0.mlp.down_proj"][1]
    torch.testing.assert_close(change[:, columns], values.dense())
    torch.testing.assert_close(change.abs().sum(), values.dense().abs().sum())


def test_what_cannot_be_recovered_is_refused():
    model = llama()
    small = prune_channels(model, 0.5)
    corank.adapt(small.model, "dora", rank=2)
    with pytest.raises(SiteError, match="does more than add"):
        loram(model, small)
    assert not adapted(model)
    with pytest.raises(ValueError, match="ratio=1"):
        prune_channels(model, 1)
    with pytest.raises(SiteError, match="heads of 5"):
        prune_channels(model, 0.5, head_size=5)
    with pytest.raises(ValueError, match="no feed-forward part"):
        prune_channels(torch.nn.Sequential(torch.nn.Linear(4, 4)), 0.5)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_families_prune_too(family):
    found = FAMILIES[family]
    model = found.build().eval()
    small = prune_channels(model, 0.5)
    small.model.eval()
    with torch.no_grad():
        expected = zeroed(model, small.kept)
        for name, (rows, _) in small.kept.items():
            if rows is not None and expected.get_submodule(name).bias is not None:
                bias = expected.get_submodule(name).bias.data
                gone = [i for i in range(len(bias)) if i not in set(rows.tolist())]
                bias[gone] = 0
        ours, theirs = small.model(**found.inputs())[0], expected(**found.inputs())[0]
    torch.testing.assert_close(ours, theirs)
