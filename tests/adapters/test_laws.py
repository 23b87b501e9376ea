"""Every registered adapter against the laws that it declares. A new method adds no test here."""

import copy
import math

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapted, adapters
from corank.errors import SiteError
from corank.layers import Linear
from corank.operators import build, describe

from .small import (
    PARAMETERS,
    adapt,
    batches,
    leaves,
    loss,
    mask_by_hand,
    operators,
    small_model,
    stir,
)

METHODS = [m for m in corank.methods("adapt") if "setting" not in m.laws]
MATRICES = [m for m in METHODS if "plain_module" not in m.laws]
every = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
every_matrix = pytest.mark.parametrize("method", MATRICES, ids=lambda m: m.key)


def law(name):
    found = [m for m in METHODS if name in m.laws]
    return pytest.mark.parametrize("method", found, ids=lambda m: m.key)


#: Forms besides the default one: their equation, count and start are tested as well.
FORMS = [
    ("bone", {"variant": "miss"}),
    ("dota", {"order": 2}),
    ("lift", {"interval": None}),
    ("lokr", {"rank": 2}),
    ("lokr", {"rank": 1, "decompose_both": True}),
    ("salt", {"rectify": False}),
    ("shears", {"sparsity": 0.0}),
    ("spectral_adapter", {"form": "rotational", "first": 2}),
    ("surm", {"kind": "kronecker", "rank": 4}),
    ("surm", {"kind": "ldr", "rank": 2, "scale": 0.5}),
    ("surm", {"kind": "toeplitz"}),
    ("svft", {"pattern": "plain"}),
    ("svft", {"pattern": "random", "rank": 6}),
    ("svft", {"pattern": "top_k"}),
    ("tensorpoly", {"routing": "order"}),
    ("wara", {"wavelet": "db2"}),
]

#: Forms that start at W, of methods that do not by default.
AT_W = {"fourierft": {"init_weights": True}, "lora_xs": {"std": 0.0}, "edora": {"std": 0.0},
        "shears": {"sparsity": 0.0}, "tensorpoly": {"zero_start": True}}  # fmt: skip

X = batches(1)[0]


@every
def test_is_documented(method):
    assert method.paper.title
    assert method.paper.where
    assert method.laws
    assert method.summary.endswith(".")


PRESERVING = [
    *((m.key, {}) for m in METHODS if "preserves" in m.laws),
    *(form for form in FORMS if form[0] not in AT_W),
    *AT_W.items(),
]


@pytest.mark.parametrize(("key", "form"), PRESERVING, ids=lambda part: str(part or ""))
def test_the_function_is_unchanged_at_the_start(key, form):
    before = small_model()(X)
    model, _ = adapt(corank.registry.find_method(key), **form)
    torch.testing.assert_close(model(X), before)


@every
def test_the_weights_never_change(method):
    model, before = small_model(), small_model()
    adapt(method, model)
    for number, layer in enumerate(before):
        if isinstance(layer, nn.Linear) and isinstance(model[number], Linear):
            held = model[number].operator
            assert torch.equal(held.base.dense(), layer.weight)


@every_matrix
def test_forward_is_dense_and_linear(method):
    model, _ = adapt(method)
    stir(model)
    for op in operators(model).values():
        x = torch.randn(3, 2, op.shape[1], dtype=torch.float64)
        y = op(x)
        torch.testing.assert_close(y, x @ op.dense().mT)
        torch.testing.assert_close(op(2 * x - x.flip(0)), 2 * y - y.flip(0))
        torch.testing.assert_close(op(x[1, 1]), y[1, 1])


@law("adapter")
def test_only_its_leaves_train_and_each_does(method):
    model, _ = adapt(method)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    training = [p for p in model.parameters() if p.requires_grad]
    assert training
    control = corank.controller(model, total_steps=30)
    optimizer = torch.optim.Adam(control.parameter_groups(3e-3))
    control.attach(optimizer)
    reached, losses = set(), []
    for step in range(30):
        value = loss(model, batches(6)[step % 6])
        optimizer.zero_grad()
        value.backward()
        reached |= {
            n for n, p in model.named_parameters()
            if p.requires_grad and p.grad is not None and bool(p.grad.any())
        }  # fmt: skip
        optimizer.step()
        losses.append(value.item())
    assert min(losses[-6:]) < losses[0]
    assert {n for n, p in model.named_parameters() if p.requires_grad} <= reached
    now = dict(model.named_parameters())
    if not {"dynamic", "moves_frozen"} & method.laws:
        assert all(torch.equal(now[n], was) for n, was in frozen.items())


EQUATIONS = [(m.key, {}) for m in METHODS if m.equation] + FORMS


@pytest.mark.parametrize(("key", "form"), EQUATIONS, ids=lambda part: str(part or ""))
def test_value_and_gradient_are_the_papers(key, form):
    method = corank.registry.find_method(key)
    given = PARAMETERS.get(key, {}) | form
    model, _ = adapt(method, **form)
    stir(model)
    for path, op in operators(model).items():
        base = adapted(model)[path].base.dense()
        ours = op(torch.eye(op.shape[1], dtype=torch.float64)).mT
        theirs = method.equation(base, leaves(op), **given)
        torch.testing.assert_close(ours, theirs)
        weight = torch.randn(op.shape, dtype=torch.float64)
        trained = [p for p in op.parameters() if p.requires_grad]
        one = torch.autograd.grad((ours * weight).sum(), trained)
        two = torch.autograd.grad((theirs * weight).sum(), trained)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b)


COUNTED = [(m.key, {}) for m in METHODS if "chooses" not in m.laws] + FORMS


@pytest.mark.parametrize(("key", "form"), COUNTED, ids=lambda part: str(part or ""))
def test_counts_are_the_papers(key, form):
    model, report = adapt(corank.registry.find_method(key), **form)
    held = adapters(model)["default"]
    sites = list(held.sites.values())
    also = sum(model.get_parameter(n).numel() for n in held.also)
    assert report.totals["trainable"] - also == held.recipe.count(sites)
    assert report.totals["stored"] == held.recipe.count(sites) + held.recipe.frozen(sites)


@every
def test_a_dry_run_counts_on_the_meta_device(method):
    _, report = adapt(method)
    model = small_model().to("meta")
    planned = corank.adapt(model, method.key, dry_run=True, **PARAMETERS.get(method.key, {}))
    if "chooses" not in method.laws:
        also = report.totals["trainable"] - sum(r.trainable for r in report.sites)
        assert planned.totals["trainable"] == report.totals["trainable"] - also
        assert planned.totals["stored"] == report.totals["stored"]
    assert all(p.is_meta for p in model.parameters())


@every
def test_a_start_depends_on_the_seed_alone(method):
    once, again, other = (adapt(method, seed=seed)[0] for seed in (0, 0, 1))
    torch.randn(7)
    for path, op in operators(once).items():
        same, state = operators(again)[path].state_dict(), op.state_dict()
        assert all(torch.equal(state[n], same[n]) for n in state)
        assert list(state) == list(operators(other)[path].state_dict())


@every
def test_skeletons_rebuild_it(method):
    model, _ = adapt(method)
    stir(model)
    for weight in adapted(model).values():
        again = build(describe(weight), "cpu")
        again.load_state_dict(weight.state_dict())
        x = torch.randn(3, weight.shape[1], dtype=torch.float64)
        torch.testing.assert_close(again(x), weight(x))
        torch.testing.assert_close(copy.deepcopy(weight)(x), weight(x))


@every
def test_half_precision_keeps_its_leaves_wide(method):
    model, _ = adapt(method, dtype=torch.bfloat16)
    assert all(
        leaf.dtype == torch.float32
        for op in operators(model).values()
        for leaf in op.parameters()
        if leaf.requires_grad
    )
    y = model(X.bfloat16())
    assert y.dtype == torch.bfloat16
    y.sum().backward()


@every
def test_it_can_be_switched_off_merged_and_deleted(method):
    bare = small_model()(X)
    model, _ = adapt(method)
    stir(model)
    with torch.no_grad():
        acting = model(X)
        with corank.adapters.disabled(model):
            off = model(X)
        if "plain_module" in method.laws:
            with pytest.raises(SiteError, match=r"not one matrix.*delete"):
                corank.adapters.merge_adapters(model)
            with pytest.raises(SiteError, match="not one matrix"):
                corank.merge(model)
        else:
            corank.adapters.merge_adapters(model)
        torch.testing.assert_close(model(X), acting)
        corank.adapters.unmerge_adapters(model)
        assert torch.equal(model(X), acting)
        corank.adapters.delete(model, "default")
        assert torch.equal(off, bare)
        assert torch.equal(model(X), bare)
    assert all(type(layer) is nn.Linear for layer in model if not isinstance(layer, nn.Tanh))


@every
def test_training_resumes_exactly(method):
    def run(model, control, optimizer, steps):
        for step in steps:
            value = loss(model, batches(6)[step % 6])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    def start(model):
        control = corank.controller(model, total_steps=12)
        optimizer = torch.optim.Adam(control.parameter_groups(1e-3))
        control.attach(optimizer)
        return control, optimizer

    model, _ = adapt(method)
    control, optimizer = start(model)
    run(model, control, optimizer, range(5))
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    trains = [p.requires_grad for p in model.parameters()]
    run(model, control, optimizer, range(5, 12))
    again, _ = adapt(method)
    control, optimizer = start(again)
    again.load_state_dict(kept[0])
    for parameter, flag in zip(again.parameters(), trains, strict=True):
        parameter.requires_grad_(flag)
    optimizer.load_state_dict(kept[1])
    run(again, control, optimizer, range(5, 12))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def train(model, optimizer, steps):
    for step in steps:
        value = loss(model, batches(6)[step % 6])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return value.item()


def started(method, steps, mask=()):
    """A model trained for some steps, with some ranks of every trainable product masked then."""
    model, _ = adapt(method)
    control = corank.controller(model, total_steps=12)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-3))
    control.attach(optimizer)
    train(model, optimizer, range(steps))
    for op in control.trainings[0].low_ranks().values():
        kept = torch.ones(op.rank, dtype=torch.bool)
        kept[list(mask)] = False
        mask_by_hand(model, op, kept)
    return model, control, optimizer


@law("dynamic")
def test_masked_equals_cut_and_the_optimiser_follows(method):
    model, control, optimizer = started(method, 6, mask=(0,))
    products = control.trainings[0].low_ranks().values()
    before, moments, expected = model(X).detach(), [], []
    for op in products:
        for name, axis in (("a", 0), ("b", 1), ("gate", 0)):
            leaf = getattr(op, name)
            if leaf is not None and "exp_avg" in optimizer.state.get(leaf, {}):
                alive = op.alive.nonzero().squeeze(1)
                moments.append((op, name))
                expected.append(
                    [optimizer.state[leaf][k].index_select(axis, alive)
                     for k in ("exp_avg", "exp_avg_sq")]
                )  # fmt: skip
    assert corank.adapters.compact(model, optimizer, control) >= len(products)
    torch.testing.assert_close(model(X), before)
    assert all(op.alive.all() for op in products)
    for (op, name), values in zip(moments, expected, strict=True):
        state = optimizer.state[getattr(op, name)]
        assert torch.equal(state["exp_avg"], values[0])
        assert torch.equal(state["exp_avg_sq"], values[1])
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} <= grouped
    assert grouped <= {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= grouped


@law("dynamic")
def test_training_goes_on_after_a_cut(method):
    model, control, optimizer = started(method, 5, mask=(0,))
    corank.adapters.compact(model, optimizer, control)
    before = model(X).detach()
    assert math.isfinite(train(model, optimizer, range(5, 12)))
    assert not torch.equal(model(X), before)
