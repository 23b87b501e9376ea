"""Every registered factorisation against the laws that all obey. A new one adds no test here."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.adapters import factorized
from corank.layers import Linear
from corank.operators import build, describe

from ..adapters.small import leaves, loss, small_model, stir
from .small import PARAMETERS, batches, begin, factorize, operators, train

METHODS = [m for m in corank.methods() if "factorization" in m.laws]
MATRICES = [m for m in METHODS if "nonlinear" not in m.laws]
every = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
every_matrix = pytest.mark.parametrize("method", MATRICES, ids=lambda m: m.key)
X = batches(1)[0]


@every
def test_is_documented(method):
    assert method.paper.title
    assert method.paper.where
    assert method.summary.endswith(".")


@every
def test_everything_but_the_weights_stays(method):
    model, before = small_model(), small_model()
    factorize(method, model)
    for here, was in zip(model, before, strict=True):
        if isinstance(was, nn.Linear):
            assert isinstance(here, Linear)
            assert torch.equal(here.bias, was.bias)
            assert here.bias.requires_grad


@every
def test_the_function_is_unchanged_at_the_start_where_that_is_declared(method):
    model, _ = factorize(method)
    if "preserves" in method.laws:
        torch.testing.assert_close(model(X), small_model()(X))


@every_matrix
def test_forward_is_dense(method):
    model, _ = factorize(method)
    stir(model)
    for op in operators(model).values():
        x = torch.randn(3, 2, op.shape[1], dtype=torch.float64)
        torch.testing.assert_close(op(x), x @ op.dense().mT)


@pytest.mark.parametrize("method", [m for m in MATRICES if m.equation], ids=lambda m: m.key)
def test_value_and_gradient_are_the_papers(method):
    model, _ = factorize(method)
    stir(model)
    weights = {name: small_model().get_parameter(f"{name}.weight") for name in operators(model)}
    for name, op in operators(model).items():
        ours = op(torch.eye(op.shape[1], dtype=torch.float64)).mT
        theirs = method.equation(weights[name], leaves(op), **PARAMETERS.get(method.key, {}))
        torch.testing.assert_close(ours, theirs)
        weight = torch.randn(op.shape, dtype=torch.float64)
        trained = [p for p in op.parameters() if p.requires_grad]
        one = torch.autograd.grad((ours * weight).sum(), trained, allow_unused=True)
        two = torch.autograd.grad((theirs * weight).sum(), trained, allow_unused=True)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b)


@every
def test_every_leaf_trains_and_the_loss_falls(method):
    model, _ = factorize(method)
    _, optimizer = begin(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = train(model, optimizer, range(30))
    assert sum(losses[-6:]) < sum(losses[:6])
    for name, leaf in model.named_parameters():
        moved = name not in before or not torch.equal(leaf, before[name])
        assert moved == leaf.requires_grad or "moves_frozen" in method.laws, name


@every
def test_counts_are_the_papers(method):
    model, report = factorize(method)
    (held,) = factorized(model).values()
    sites = list(held.sites.values())
    if "chooses" not in method.laws:
        assert report.totals["trainable"] == held.recipe.count(sites)
        stored = held.recipe.count(sites) + held.recipe.frozen(sites)
        assert report.totals["numel_after"] == stored
    biases = sum(layer.bias.numel() for layer in model if isinstance(layer, Linear))
    assert report.totals["model_numel_after"] - biases == report.totals["numel_after"]


@every
def test_a_dry_run_counts_on_the_meta_device(method):
    _, report = factorize(method)
    model = small_model().to("meta")
    planned = factorize(method, model, dry_run=True)[1]
    if "chooses" not in method.laws:
        assert planned.totals["trainable"] == report.totals["trainable"]
        assert planned.totals["numel_after"] == report.totals["numel_after"]
    assert all(type(layer) in (nn.Linear, nn.Tanh) for layer in model)
    assert not factorized(model)


@every
def test_a_start_depends_on_the_seed_alone(method):
    once, again = (factorize(method)[0] for _ in range(2))
    assert all(
        torch.equal(p, q) for p, q in zip(once.parameters(), again.parameters(), strict=True)
    )
    if "chooses" not in method.laws:
        alone, _ = factorize(method, targets=["2"])
        mine, other = operators(alone)["2"].state_dict(), operators(once)["2"].state_dict()
        assert all(torch.equal(mine[name], other[name]) for name in other)
    reseeded = operators(factorize(method, seed=1)[0])
    same = [
        torch.equal(a, b)
        for name, op in operators(once).items()
        for a, b in zip(op.state_dict().values(), reseeded[name].state_dict().values(), strict=True)
        if a.shape == b.shape
    ]
    assert all(same) == ("from_w" in method.laws)


@every
def test_half_precision_weights_stay_half_precision(method):
    model, _ = factorize(method, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model(X.bfloat16()).sum().backward()


@every
def test_skeletons_rebuild_it(method):
    model, _ = factorize(method)
    stir(model)
    for op in operators(model).values():
        again = build(describe(op), "cpu")
        again.load_state_dict(op.state_dict())
        x = torch.randn(3, op.shape[1], dtype=torch.float64)
        torch.testing.assert_close(again(x), op(x))


@every
def test_a_folder_keeps_it_and_training_resumes_exactly(method, tmp_path):
    model, _ = factorize(method)
    _, optimizer = begin(model)
    train(model, optimizer, range(4))
    corank.save(model, tmp_path / "at 4")
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(4, 9))
    again = corank.load(tmp_path / "at 4", small_model)
    _, optimizer = begin(again)
    optimizer.load_state_dict(state)
    train(again, optimizer, range(4, 9))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@every
def test_training_resumes_exactly_in_a_fresh_model(method):
    if "changes_shape" in method.laws:
        pytest.skip("what it has become is in its folder")
    model, _ = factorize(method)
    _, optimizer = begin(model)
    train(model, optimizer, range(4))
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(4, 9))
    again, _ = factorize(method)
    again.load_state_dict(kept[0])
    _, optimizer = begin(again)
    optimizer.load_state_dict(kept[1])
    train(again, optimizer, range(4, 9))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@every_matrix
def test_merging_and_compacting_keep_the_function(method):
    model, _ = factorize(method)
    control, optimizer = begin(model)
    train(model, optimizer, range(4))
    before = model(X)
    corank.adapters.compact(model, optimizer, control)
    torch.testing.assert_close(model(X), before)
    corank.merge(model)
    torch.testing.assert_close(model(X), before)
    assert all(type(layer) in (nn.Linear, nn.Tanh) for layer in model)
    assert not factorized(model)


@every
def test_bad_weights_leave_the_model_unchanged(method):
    model = small_model()
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"4 \(.*20x20\)"):
        factorize(method, model)
    assert all(type(layer) in (nn.Linear, nn.Tanh) for layer in model)
    assert not factorized(model)


@pytest.mark.parametrize("method", [m for m in METHODS if "rank" in m.parameters],
                         ids=lambda m: m.key)  # fmt: skip
def test_a_rank_that_does_not_fit_leaves_the_model_unchanged(method):
    model = small_model()
    with pytest.raises(ValueError, match="rank"):
        factorize(method, model, rank=1000)
    assert all(type(layer) in (nn.Linear, nn.Tanh) for layer in model)


@every
def test_one_training_step_is_finite_with_plain_sgd(method):
    model, _ = factorize(method)
    _, optimizer = begin(model, lr=1e-3, optimizer=torch.optim.SGD)
    train(model, optimizer, range(2))
    assert torch.isfinite(loss(model, X))


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.key not in ("compact", "rmm_linear")], ids=lambda m: m.key
)
def test_compiles_without_a_graph_break(method):
    """But for the sketches of inputs, which stay out of a graph."""
    model, _ = factorize(method)
    _, optimizer = begin(model)
    train(model, optimizer, range(2))
    torch.compiler.reset()
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        optimizer.zero_grad()
        out = run(X)
        out.sum().backward()
        results.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(results[1], results[0])
