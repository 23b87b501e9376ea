"""Several adapters on one model: combined, switched, selected by row, deleted."""

import pytest
import torch
from torch import nn

import corank
from corank.adapters import activate, active, adapted, adapters, delete, disabled, select
from corank.models import find_sites, install, read
from corank.operators import Quantised, quantise_uniform

from .small import batches, small_model, stir

X = batches(1)[0]


def two(first="lora", second="dora", dtype=torch.float64, **options):
    model = small_model(dtype=dtype)
    corank.adapt(model, first, name="a", rank=4, **options)
    stir(model, seed=3)
    corank.adapt(model, second, name="b", rank=3)
    stir(model, seed=4)
    return model


def weights(model):
    return [layer.weight for layer in model if not isinstance(layer, nn.Tanh)]


def matrices(model, wanted):
    activate(model, wanted)
    return [w.clone() for w in weights(model)]


@torch.no_grad()
def test_adapters_combine_in_function_space():
    model, bare = two(), [w.clone() for w in weights(small_model())]
    a, b = matrices(model, "a"), matrices(model, "b")
    both = matrices(model, {"a": 0.7, "b": -0.4})
    for one, other, w, ours in zip(a, b, bare, both, strict=True):
        torch.testing.assert_close(ours, w + 0.7 * (one - w) - 0.4 * (other - w))
    assert active(model) == {"a": 0.7, "b": -0.4}


def test_only_the_leaves_of_active_adapters_train():
    model = two()
    count = {name: sum(p.requires_grad for p in model.parameters()) for name in [None]}
    activate(model, "a")
    lora = sum(p.requires_grad for p in model.parameters())
    activate(model, ["a", "b"])
    both = sum(p.requires_grad for p in model.parameters())
    assert (lora, count[None], both) == (6, 9, 15)


@torch.no_grad()
def test_rows_of_a_batch_go_through_their_own_adapter():
    model = two()
    outs = {}
    for name in ("a", "b"):
        activate(model, name)
        outs[name] = model(X)
    with disabled(model):
        outs[None] = model(X)
    names = [["a", None, "b", "b"][i % 4] for i in range(len(X))]
    with select(model, names):
        mixed = model(X)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], outs[name][i])
    few = pytest.raises(ValueError, match="2 adapters were selected for a batch of 32")
    with few, select(model, ["a", "b"]):
        model(X)
    torch.testing.assert_close(model(X), outs["b"])


@torch.no_grad()
def test_a_thousand_merges_change_no_bit():
    model = two(dtype=torch.bfloat16)
    x = X.bfloat16()
    before, state = model(x), [t.clone() for t in model.state_dict().values()]
    for _ in range(1000):
        merged = corank.adapters.merge_adapters(model)
        corank.adapters.unmerge_adapters(model)
    assert torch.equal(model(x), before)
    assert all(torch.equal(a, b) for a, b in zip(state, model.state_dict().values(), strict=True))
    assert 1e-4 < merged.error < 1e-2
    assert corank.adapters.merge_adapters(model, dtype="wide").error == 0


@torch.no_grad()
def test_merging_into_a_quantised_weight_says_what_it_costs():
    model = small_model()
    for site in find_sites(model):
        codes = quantise_uniform(read(model, site).dense().detach(), bits=4, group=4)
        install(model, site, codes)
    bare = model(X)
    corank.adapt(model, "lora", rank=2)
    stir(model)
    acting = model(X)
    rounded = corank.adapters.merge_adapters(model)
    assert 0.01 < rounded.error < 0.4
    assert isinstance(model[0].operator.merged, Quantised)
    assert rounded.bytes == sum(w.base.bytes() for w in adapted(model).values())
    assert (model(X) - acting).norm() > 0.01 * acting.norm()
    wide = corank.adapters.merge_adapters(model, dtype="wide")
    assert wide.error == 0
    torch.testing.assert_close(model(X), acting)
    corank.adapters.unmerge_adapters(model)
    with disabled(model):
        assert torch.equal(model(X), bare)


@torch.no_grad()
def test_deleting_one_leaves_the_other():
    model = two()
    activate(model, "a")
    alone = model(X)
    delete(model, "b")
    assert torch.equal(model(X), alone)
    assert list(adapters(model)) == ["a"]
    with pytest.raises(ValueError, match="unknown adapter 'b': known: a"):
        activate(model, "b")


def test_modules_to_save_train_and_come_back():
    model = small_model()
    original = model[4].weight.clone()
    corank.adapt(model, "lora", targets=["0"], modules_to_save=["4"], name="a")
    assert model[4].weight.requires_grad
    stir(model)
    trained = model[4].weight.clone()
    with disabled(model):
        assert torch.equal(model[4].weight, original)
    assert torch.equal(model[4].weight, trained)
    corank.adapt(model, "lora", targets=["2"], modules_to_save=["4"], name="b")
    assert torch.equal(model[4].weight, original)
    activate(model, "a")
    assert torch.equal(model[4].weight, trained)
    with pytest.raises(ValueError, match=r"'a' and 'b' both hold values of 4\.weight"):
        activate(model, ["a", "b"])
    shared = pytest.raises(ValueError, match="trains parameters of the model itself")
    with shared, select(model, ["a"]):
        pass
    delete(model, "a")
    assert torch.equal(model[4].weight, original)


def test_targets_can_have_parameters_of_their_own():
    model = small_model()
    corank.adapt(model, "lora", targets={"0": {"rank": 2}, "2": {}, "4": None}, rank=5)
    ranks = {n: w.adapter("default").operators[1].operator.rank for n, w in adapted(model).items()}
    assert ranks == {"0": 2, "2": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["4"], "name": "a"}, "already carries an adapter 'a'"),
        ({"targets": ["nowhere"]}, "unknown target 'nowhere'"),
        ({"rank": 21}, r"0 \(.*36x16\): rank 21 is outside 1 to 16"),
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"ranks": 3}, "unknown parameter of 'lora' 'ranks': did you mean 'rank'"),
        ({"modules_to_save": ["head"]}, "no module's name ends in 'head'"),
        ({"modules_to_save": ["0"]}, "0 is both a target and to be saved in full"),
        ({"layers": [7]}, r"no targeted site is in layer \[7\]"),
        ({"targets": {"0": None}}, "no site was targeted"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(options, message):
    model = small_model()
    corank.adapt(model, "lora", targets=["4"], name="a", rank=2)
    stir(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    trains = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        corank.adapt(model, "lora", **{"targets": ["0"], "name": "b", **options})
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert trains == [p.requires_grad for p in model.parameters()]
    assert list(adapters(model)) == ["a"]


def test_weights_that_are_not_finite_are_refused():
    model = small_model()
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"2 \(.*20x36\): its weight has 1 NaN"):
        corank.adapt(model, "pissa", rank=2)
