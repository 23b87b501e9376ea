"""State-space mixers, alone and among attentions, cut in whole models."""

import copy

import pytest
import torch

import corank
from corank.calibration import batches, collect
from corank.calibration.outputs import outputs
from corank.models import find_sites, modules_and_mixers, read
from corank.operators import Dense
from corank.registry import METHODS
from corank.rewrites import Unit, layout_of

from .hybrids import padded, tiny_bamba, tiny_falcon, tiny_granite, tiny_mamba2, tiny_nemotron
from .models import tokens
from .test_modular import lost

BUILDS = [tiny_mamba2, tiny_bamba, tiny_granite, tiny_nemotron]
every = pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)


def same(model, other, data):
    pairs = zip(outputs(model, data), outputs(other, data), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def mixers(model):
    return [module for module in model.modules() if hasattr(module, "A_log")]


@every
def test_the_budget_is_met_and_keeping_all_changes_nothing(build):
    model, data = build(), tokens(4)
    original = copy.deepcopy(model)
    corank.compress(model, "uniql", keep=1.0, data=data)
    state = original.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    told = corank.compress(model, "uniql", keep=0.7, allocate="uniform", dry_run=True)
    report = corank.compress(model, "uniql", keep=0.7, data=data, allocate="uniform")
    assert told.totals["bytes_after"] == report.totals["bytes_after"]
    assert 0.55 < report.totals["bytes_after"] / report.totals["bytes_before"] <= 0.7
    assert lost(model, original, data) < 1.5
    rows = {row.role: row for row in report.sites}
    for role in ("in_proj", "out_proj"):
        assert rows[role].operator == "Product"
        assert rows[role].numel_after < rows[role].numel_before


@every
def test_a_file_is_cut_at_load_to_what_the_method_would_have_kept(build, tmp_path):
    model, data = build(), tokens(3)
    family = METHODS["uniql"].recipe({}).family
    sites = find_sites(model)
    collect(model, sites, family.needs, batches(data))
    groups = modules_and_mixers(sites)
    units = [Unit(group, [read(model, site) for site in group]) for group in groups]
    corank.compress(model, "uniql", keep=0.8, data=data, allocate="uniform")
    corank.save(model, tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert same(loaded, model, data)
    report = corank.cut(loaded, keep=0.6)
    for unit in units:
        made = [read(loaded, site) for site in unit.sites]
        was = [read(model, site) for site in unit.sites]
        layout = layout_of(unit)
        had = layout.kept(Unit(unit.sites, was))
        if all(isinstance(op, Dense) for op in was):
            assert had is None
            continue
        size = int(0.6 * len(had) / layout.step) * layout.step
        assert 0 < size < len(had)
        for op, wanted in zip(made, family.build(unit, size), strict=True):
            torch.testing.assert_close(op.dense(), wanted.dense())
    for mixer in mixers(loaded):
        silent = ~(mixer.in_proj.operator.dense() != 0).any(1)
        assert silent.any()
        gone = silent[mixer.intermediate_size : -mixer.num_heads]
        assert not mixer.conv1d.bias[gone].any()
        assert mixer.conv1d.bias[~gone].all()
    assert report.totals["model_bytes_after"] < report.totals["model_bytes_before"]
    corank.save(loaded, tmp_path / "smaller")
    assert same(type(model).from_pretrained(tmp_path / "smaller"), loaded, data)


@every
def test_cut_is_zeroed_in_the_original(build):
    """The gate closes a channel, C hides a state: zeros there alone say the same."""
    model, data = build(), tokens(2)
    original = copy.deepcopy(model)
    corank.compress(model, "uniql", keep=0.6, data=data, targets=["in_proj", "out_proj"])
    for mixer, old in zip(mixers(model), mixers(original), strict=True):
        inner, states = old.intermediate_size, old.n_groups * old.ssm_state_size
        z, x, b, c, _ = (~(mixer.in_proj.operator.dense() != 0).any(1)).split(
            [inner, inner, states, states, old.num_heads]
        )
        assert torch.equal(z, x)
        assert torch.equal(b, c)
        assert torch.equal(z, ~(mixer.out_proj.operator.dense() != 0).any(0))
        assert b.view(old.n_groups, -1).sum(1).unique().numel() == 1
        with torch.no_grad():
            old.in_proj.weight[:inner][z] = 0
            old.in_proj.weight[2 * inner + states : 2 * (inner + states)][c] = 0
            old.conv1d.bias[inner + states :][c] = 0
    pairs = zip(outputs(model, data), outputs(original, data), strict=True)
    for now, wanted in pairs:
        torch.testing.assert_close(now, wanted, rtol=1e-4, atol=1e-5)


def test_a_cut_model_goes_on_token_by_token():
    model = tiny_mamba2()
    corank.compress(model, "uniql", keep=0.6, data=tokens())
    ids = tokens(1, batch=2, length=9)[0]["input_ids"].clamp_min(3)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        start = model(input_ids=ids[:, :6], use_cache=True)
        parts, cache = [start.logits], start.cache_params
        for t in range(6, 9):
            step = model(input_ids=ids[:, t : t + 1], cache_params=cache, use_cache=True)
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cascade", ["compressed", "original"])
@pytest.mark.parametrize("build", [tiny_mamba2, tiny_nemotron])
def test_a_cascade_goes_block_by_block(build, cascade):
    model, data = build(), tokens(4)
    original = copy.deepcopy(model)
    report = corank.compress(model, "uniql", keep=0.7, data=data, cascade=cascade)
    assert report.totals["bytes_after"] <= 0.7 * report.totals["bytes_before"]
    assert lost(model, original, data) < 1.5


@pytest.mark.parametrize("allocate", ["greedy", "knapsack", "sensitivity", "relative"])
def test_every_allocator_can_choose(allocate):
    model, data = tiny_bamba(), tokens(2)
    report = corank.compress(model, "uniql", keep=0.6, data=data, allocate=allocate)
    assert report.totals["bytes_after"] <= 0.6 * report.totals["bytes_before"]


def test_measuring_and_failing_leave_the_biases_as_they_were(monkeypatch):
    model, data = tiny_mamba2(), tokens(2)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="smallest reachable"):
        corank.compress(model, "uniql", keep=0.01, data=data, allocate="sensitivity")
    monkeypatch.setattr("corank.verbs.shrinking.settle_trained", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        corank.compress(model, "uniql", keep=0.5, data=data, allocate="sensitivity")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_statistics_are_kept_in_a_file(tmp_path):
    data, path = padded(tokens(2), 3), tmp_path / "statistics"
    first, second = tiny_bamba(), tiny_bamba()
    corank.compress(first, "uniql", keep=0.6, data=data, statistics=path, allocate="uniform")
    corank.compress(second, "uniql", keep=0.6, statistics=path, allocate="uniform")
    assert same(first, second, tokens(1))


def test_a_convolution_without_a_bias_has_none_to_lose():
    model = tiny_mamba2(use_conv_bias=False)
    corank.compress(model, "uniql", keep=0.6, data=tokens(2))
    assert all(mixer.conv1d.bias is None for mixer in mixers(model))


def test_an_in_proj_without_its_partner_loses_inputs_only():
    model = tiny_mamba2()
    corank.compress(model, "uniql", keep=0.7, data=tokens(2), targets=["in_proj"])
    assert all(isinstance(mixer.out_proj, torch.nn.Linear) for mixer in mixers(model))
    assert all((mixer.in_proj.operator.dense() != 0).any(1).all() for mixer in mixers(model))
    assert all(mixer.conv1d.bias.all() for mixer in mixers(model))


def test_what_is_left_of_a_mixer_can_be_put_in_codes():
    model, data = tiny_bamba(), tokens(2)
    original = copy.deepcopy(model)
    steps = ["uniql", {"round_to_nearest": {"bits": 8, "group": 16}}]
    report = corank.compress(model, steps, keep=0.25, data=data)
    assert report.totals["bytes_after"] <= 0.25 * report.totals["bytes_before"]
    assert lost(model, original, data) < 1.5


def test_mixers_that_scale_their_channels_lose_inputs_only():
    model = tiny_falcon()
    assert all(site.mixer is None for site in find_sites(model))
    corank.compress(model, "uniql", keep=0.8, data=tokens(2))
    dense = mixers(model)[0].in_proj.operator.dense()
    assert (dense != 0).any(1).all()
    assert not (dense != 0).any(0).all()


def test_merging_leaves_zeros_and_other_methods_go_on_as_they_did():
    model = tiny_bamba()
    corank.compress(model, "uniql", keep=0.6, data=tokens(2))
    before = outputs(model, tokens(1))
    corank.merge(model)
    torch.testing.assert_close(outputs(model, tokens(1)), before, rtol=1e-4, atol=1e-4)
    model = tiny_bamba()
    corank.compress(model, "modegpt", keep=0.8, data=tokens(2))
    assert all(mixer.conv1d.bias.all() for mixer in mixers(model))
