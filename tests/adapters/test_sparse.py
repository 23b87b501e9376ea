"""Chosen rows, columns and entries; scored masks; adapters that keep a weight's sparsity."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapted, adapters
from corank.control.sparse_states import move_support
from corank.errors import SiteError
from corank.models import Site, channels, find_sites, install
from corank.operators import Dense, OnGrid, Quantised, Sparse, quantise_uniform
from corank.recipes.masked import cubic_sparsity
from corank.registry import find_method
from corank.settings import merge_on_grid

from ..models.families import LLAMA
from .small import adapt, batches, loss, small_model, stir

X = batches(1)[0]


def llama(layers=2, **settings):
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA | {"num_hidden_layers": layers} | settings)
    return transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")


def train(model, steps, total=None, rate=1e-2):
    control = corank.controller(model, total_steps=total or steps)
    optimizer = torch.optim.Adam(control.parameter_groups(rate))
    control.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, batches(6)[step % 6]).backward()
        optimizer.step()
    return control, optimizer


# S2FT


def delta(model, name):
    weight = adapted(model)[name]
    return weight.adapter("default").dense() - weight.base.dense()


def test_the_same_channels_train_in_all_weights_that_share_them():
    model = llama(num_key_value_heads=4)
    corank.adapt(model, "s2ft", ratio=0.25, head_size=8)
    stir(model)
    seen = {"mlp": 0, "attention": 0}
    for layer in range(2):
        start = f"model.layers.{layer}."
        names = {path for path in adapted(model) if path.startswith(start)}
        for part, reader, makers, width in (
            ("mlp", "mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj"), 48),
            ("attention", "self_attn.o_proj", ("self_attn.v_proj",), 32),
        ):
            if start + reader not in names:
                continue
            columns = delta(model, start + reader).abs().sum(0) > 0
            assert columns.shape == (width,)
            seen[part] += int(columns.sum())
            for maker in makers:
                assert torch.equal(delta(model, start + maker).abs().sum(1) > 0, columns)
            if part == "attention":
                heads = columns.view(-1, 8)
                assert torch.equal(heads.all(1), heads.any(1))
    assert seen == {"mlp": 24, "attention": 16}  # a quarter of both layers' together


def test_the_published_setting_counts_channels_of_all_layers():
    model = llama()
    report = corank.adapt(model, "s2ft", targets=["down_proj"], ratio=0.03)
    assert report.totals["trainable"] == int(2 * 48 * 0.03) * 32
    assert len(adapted(model)) <= 2


def test_channels_are_found_in_fused_and_separate_projections():
    groups = channels(find_sites(llama()))
    parts = [(g.part, len(g.makers), len(g.readers)) for g in groups if g.part == "mlp"]
    assert parts == [("mlp", 2, 1)] * 2
    assert sum(len(g.makers) + len(g.readers) for g in groups) == len(find_sites(llama()))


def test_a_fused_projection_makes_each_channel_twice():
    makers = Site("0.gate_up_proj", "gate_up", 0, (12, 4), False, "linear")
    readers = Site("0.down_proj", "down", 0, (4, 6), False, "linear")
    (group,) = channels([makers, readers])
    assert group.rows(makers, torch.tensor([1, 4])).tolist() == [1, 4, 7, 10]


@pytest.mark.parametrize("rule", ["weight", "activation", "gradient"])
@pytest.mark.parametrize("largest", [True, False])
def test_selection_takes_the_extremes(rule, largest):
    model = small_model()
    weight = model[0].weight.detach().clone()
    data = batches()
    adapt(
        find_method("s2ft"), model, ratio=0.25, select=rule, largest=largest, data=data, loss=loss
    )
    stir(model)
    chosen = delta(model, "0").abs().sum(0) > 0
    if rule == "weight":
        scores = weight.square().sum(0)
    elif rule == "activation":
        scores = torch.cat(data).square().mean(0)
    else:
        plain = small_model()
        total = torch.zeros_like(weight)
        for batch in data:
            total += torch.autograd.grad(loss(plain, batch), plain[0].weight)[0]
        scores = total.square().sum(0)
    expected = scores.argsort(descending=largest)[:4]
    assert sorted(expected.tolist()) == chosen.nonzero().flatten().tolist()


def test_bad_ratios_and_heads_are_refused():
    with pytest.raises(ValueError, match="ratio=0 is above 0"):
        corank.adapt(small_model(), "s2ft", ratio=0)
    model = llama()
    with pytest.raises(SiteError, match="head_size=7 does not divide"):
        corank.adapt(model, "s2ft", targets=["o_proj"], head_size=7)
    ids = [{"input_ids": torch.randint(3, 64, (2, 7))}]
    with pytest.raises(SiteError, match="where they are read"):
        corank.adapt(model, "s2ft", targets=["up_proj"], select="activation", data=ids)
    assert not adapters(model)


# LIFT


def test_the_support_is_the_greatest_of_the_reduced_weight():
    model = small_model()
    weight = model[0].weight.detach().clone()
    report = corank.adapt(model, "lift", rank=2, filter_rank=3, interval=None)
    op = adapted(model)["0"].adapter("default")
    u, s, vh = torch.linalg.svd(weight)
    reduced = (u[:, :3] * s[:3]) @ vh[:3]
    count = 2 * (36 + 16)
    expected = reduced.abs().flatten().topk(count).indices.sort().values
    assert torch.equal(op.operators[1].index.long(), expected)
    assert report.totals["trainable"] == sum(min(2 * sum(s), s[0] * s[1]) for s in
                                             ((36, 16), (20, 36), (20, 20)))  # fmt: skip
    assert report.totals["stored"] == report.totals["trainable"]


def test_a_refresh_moves_the_support_and_not_the_function():
    model = small_model()
    corank.adapt(model, "lift", rank=1, filter_rank=2, interval=5)
    op = adapted(model)["0"].adapter("default")
    before = op.operators[1].index.clone()
    train(model, 4, total=20, rate=0.05)
    assert torch.equal(op.operators[1].index, before)
    control = corank.controller(model)
    control._started = True
    for training in control.trainings:
        training.step = 4
    here = model(X).detach()
    control.step()
    assert not torch.equal(op.operators[1].index, before)
    torch.testing.assert_close(model(X), here)
    past = op.operators[2].weight
    gone = set(before.tolist()) - set(op.operators[1].index.tolist())
    assert past.flatten()[list(gone)].abs().min() > 0


def test_moments_stay_with_their_entries():
    values = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    active = Sparse(values, torch.tensor([1, 4, 5]), (2, 3))
    past = Dense(torch.zeros(2, 3))
    optimizer = torch.optim.Adam([values])
    values.grad = torch.ones(3)
    optimizer.step()
    whole = active.dense() + past.dense()
    state = optimizer.state[values]
    state["exp_avg"].copy_(torch.tensor([0.1, 0.4, 0.5]))
    state["exp_avg_sq"].copy_(torch.tensor([1.0, 4.0, 5.0]))
    move_support(active, past, torch.tensor([0, 4, 5]), optimizer)
    torch.testing.assert_close(active.dense() + past.dense(), whole)
    assert state["exp_avg"].tolist() == pytest.approx([0, 0.4, 0.5])
    assert state["exp_avg_sq"].tolist() == pytest.approx([0, 4, 5])
    assert float(state["step"]) == 1
    assert past.weight[0, 1] != 0


# PST


def test_the_cubic_schedule():
    share = [cubic_sparsity(t / 100, 0.0, 0.9, 0.1, 0.3) for t in (0, 10, 40, 70, 100)]
    assert share == pytest.approx([0, 0, 0.9 - 0.9 * 0.5**3, 0.9, 0.9])


def test_a_trained_weight_is_as_sparse_as_was_asked():
    model = small_model()
    corank.adapt(model, "pst", rank=2, sparsity=0.5)
    train(model, 10)
    corank.merge(model)
    for layer in model[::2]:
        assert int((layer.weight == 0).sum()) == int(0.5 * layer.weight.numel())


def test_a_schedule_needs_an_end():
    model = small_model()
    corank.adapt(model, "pst")
    control = corank.controller(model)
    with pytest.raises(ValueError, match="total_steps"):
        control.step()


# SQFT


def pruned_model():
    model = small_model()
    for layer in model[::2]:
        least = layer.weight.abs().flatten().median()
        layer.weight.data[layer.weight.abs() <= least] = 0
    return model


def test_merging_keeps_every_zero():
    model, reference = pruned_model(), pruned_model()
    corank.adapt(model, "sqft", rank=4)
    stir(model)
    acting = model(X).detach()
    corank.merge(model)
    torch.testing.assert_close(model(X), acting)
    for ours, theirs in zip(model[::2], reference[::2], strict=True):
        assert torch.equal(ours.weight == 0, theirs.weight == 0)
        assert not torch.equal(ours.weight, theirs.weight)


def test_without_zeros_it_is_lora():
    ours, theirs = small_model(), small_model()
    corank.adapt(ours, "sqft", rank=4, alpha=8.0)
    corank.adapt(theirs, "lora", rank=4, alpha=8.0)
    stir(ours)
    stir(theirs)
    torch.testing.assert_close(ours(X), theirs(X))


def quantised_model():
    model = pruned_model()
    for site in find_sites(model):
        weight = model.get_submodule(site.name).weight
        install(model, site, quantise_uniform(weight, 4, 8, symmetric=False))
    return model


def test_on_the_grid_merging_loses_nothing():
    model = quantised_model()
    start = model(X).detach()
    codes = copy.deepcopy(model[0].operator)
    corank.adapt(model, "sqft", rank=4, on_grid=True)
    torch.testing.assert_close(model(X), start)
    train(model, 8, rate=0.02)
    assert isinstance(adapted(model)["0"].adapter("default"), OnGrid)
    acting = model(X).detach()
    assert not torch.allclose(acting, start)
    merge_on_grid(model)
    torch.testing.assert_close(model(X), acting)
    merged = model[0].operator
    assert isinstance(merged, Quantised)
    assert merged.codes.dtype == torch.uint8
    assert torch.equal(merged.scale, codes.scale)
    assert not torch.equal(merged.codes, codes.codes)
    assert bool((merged.dense()[codes.dense() == 0] == 0).all())
    assert not adapters(model)


def test_a_grid_needs_codes():
    with pytest.raises(SiteError, match=r"^0 .*not quantised.*Quantise the model"):
        corank.adapt(small_model(), "sqft", rank=4, on_grid=True)
    model = quantised_model()
    corank.adapt(model, "sqft", rank=4)
    with pytest.raises(SiteError, match="on_grid=True"):
        merge_on_grid(model)
    assert adapters(model)
