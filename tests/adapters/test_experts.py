"""Adapters that route each input: gates, gradients, loads, tasks."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import corank
from corank.adapters import adapted
from corank.errors import SiteError
from corank.operators import Dense, Routed, Scaled, TensorExperts, build, describe
from corank.settings import set_task

from .small import adapt, batches, loss, small_model, stir

X = batches(1)[0]


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def make(score="softmax", bias=None, tempered=False, top_k=2, experts=4, rank=3, shape=(5, 7)):
    torch.manual_seed(0)
    router = Dense(nn.Parameter(rand(experts, shape[1])))
    b, a = (
        nn.Parameter(rand(shape[0], experts * rank)),
        nn.Parameter(rand(experts * rank, shape[1])),
    )
    return Routed(b, a, router, top_k, score, bias, tempered)


def by_hand(op, x):
    """Token by token and expert by expert."""
    rank = op.a.shape[0] // op.experts
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        logits = op.router.weight @ token
        scores = logits.softmax(0) if op.score == "softmax" else logits.sigmoid()
        if op.bias is not None:
            scores = scores + op.bias
        best = scores.argsort(descending=True)[: op.top_k]
        total = sum(scores[e] for e in best)
        y = torch.zeros(op.shape[0], dtype=x.dtype)
        for e in best.tolist():
            part = slice(e * rank, (e + 1) * rank)
            y = y + scores[e] / total * (op.b[:, part] @ (op.a[part] @ token))
        rows.append(y)
    return torch.stack(rows).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_a_loop(score, biased):
    op = make(score, rand(4) / 5 if biased else None)
    x = rand(2, 6, 7).requires_grad_()
    leaves = [x, op.b, op.a, op.router.weight]
    ours, theirs = op(x), by_hand(op, x)
    torch.testing.assert_close(ours, theirs)
    weight = rand(*ours.shape)
    one = torch.autograd.grad((ours * weight).sum(), leaves)
    two = torch.autograd.grad((theirs * weight).sum(), leaves)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_tempered_gradients_have_the_root_of_the_gate():
    plain, tempered = make(), make(tempered=True)
    x = rand(1, 7)
    torch.testing.assert_close(plain(x), tempered(x))
    gates = plain.gates(x)[0].detach().repeat_interleave(3)
    weight = rand(1, 5)

    def gradients(op):
        return torch.autograd.grad((op(x) * weight).sum(), [op.b, op.a, op.router.weight])

    (b, a, router), (to_b, to_a, to_router) = gradients(plain), gradients(tempered)
    torch.testing.assert_close(to_b * gates.sqrt(), b)  # sqrt(g) in place of g
    torch.testing.assert_close(to_a * gates.sqrt()[:, None], a)
    torch.testing.assert_close(to_router, router)


def test_a_routed_operator_is_stored_compiled_and_cast_as_others_are():
    op = make(bias=torch.zeros(4, dtype=torch.float64))
    again = build(describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    x = rand(3, 7)
    assert torch.equal(again(x), op(x))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), op(x))
    assert make().float().to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert op.flops(3) == 3 * 12 * (2 * 12 + 1) + 2 * 3 * 4 * 7
    assert build(describe(op), "meta")(x.to("meta")).shape == (3, 5)


def test_a_number_in_front_of_it_is_not_pushed_through():
    op = make(shape=(9, 3))
    x = rand(4, 3)
    torch.testing.assert_close(Scaled(op, 3.0)(x), 3 * op(x))


def test_it_has_no_matrix():
    with pytest.raises(ValueError, match="not one matrix"):
        make().dense()
    with pytest.raises(ValueError, match=r"top_k=5 is outside 1 to 4"):
        make(top_k=5)
    with pytest.raises(ValueError, match="do not fit"):
        Routed(rand(5, 6), rand(6, 7), Dense(rand(4, 7)), 2)


# smora


def test_smora_is_the_published_formula():
    model = small_model()
    corank.adapt(model, "smora", rank=6, top_k=2, alpha=3.0)
    stir(model)
    op = adapted(model)["0"].adapter("default").operators[1].operator
    p = (X @ op.router.weight.T).sigmoid()
    top = p.topk(2).indices
    g = torch.zeros_like(p).scatter(1, top, p.gather(1, top))
    g = 2 * g / g.sum(1, keepdim=True)
    expected = 3.0 / 2 * (g * (X @ op.a.T)) @ op.b.T
    base = X @ adapted(model)["0"].base.dense().T + model[0].bias
    torch.testing.assert_close(model[0](X), base + expected)


def test_smora_with_all_ranks_alike_is_lora():
    model, plain = small_model(), small_model()
    corank.adapt(model, "smora", rank=4, top_k=4, alpha=8.0)
    corank.adapt(plain, "lora", rank=4, alpha=8.0)
    for path, weight in adapted(model).items():
        op, low = weight.operators[0].operators[1].operator, adapted(plain)[path].operators[0]
        op.router.weight.data.zero_()  # every gate is 1 / 4
        op.b.data.normal_()
        low.operators[1].operator.b.data.copy_(op.b)
        low.operators[1].operator.a.data.copy_(op.a)
    torch.testing.assert_close(model(X), plain(X))


def test_bias_follows_the_loads_and_recomputation_counts_for_nothing():
    def biases(recompute):
        model = small_model()
        corank.adapt(model, "smora", rank=6, top_k=2, balance=0.25)
        control = corank.controller(model)
        optimizer = torch.optim.SGD(control.parameter_groups(0.0))
        control.attach(optimizer)
        op = adapted(model)["0"].adapter("default").operators[1].operator
        chosen = op.gates(X.clone()).gt(0).sum(0).double()
        op.load.zero_()
        value = checkpoint(loss, model, X, use_reentrant=False) if recompute else loss(model, X)
        value.backward()
        optimizer.step()
        assert not op.load.any()
        return op.bias.detach(), chosen

    bias, chosen = biases(recompute=False)
    torch.testing.assert_close(bias, 0.25 * (chosen.mean() - chosen).sign())
    assert bias.any()
    torch.testing.assert_close(biases(recompute=True)[0], bias)


def test_evaluation_counts_no_loads():
    model = small_model()
    corank.adapt(model, "smora", rank=6, top_k=2)
    op = adapted(model)["0"].adapter("default").operators[1].operator
    with torch.no_grad():
        model(X)
    model.eval()
    model(X)
    assert not op.load.any()


# moe_lora


def test_gradients_are_preconditioned_per_expert():
    model = small_model()
    corank.adapt(model, "moe_lora", rank=2, experts=3, top_k=2, damping=0.1)
    stir(model)
    control = corank.controller(model)
    loss(model, X).backward()
    op = adapted(model)["0"].adapter("default").operators[1].operator
    raw_a, raw_b = op.a.grad.clone(), op.b.grad.clone()
    control.before_step()
    for e in range(3):
        part = slice(2 * e, 2 * e + 2)
        a, b, eye = op.a[part], op.b[:, part], 0.1 * torch.eye(2, dtype=torch.float64)
        expected = torch.linalg.inv(b.T @ b + eye) @ raw_a[part]
        torch.testing.assert_close(op.a.grad[part], expected)
        expected = raw_b[:, part] @ torch.linalg.inv(a @ a.T + eye)
        torch.testing.assert_close(op.b.grad[:, part], expected)


def test_the_router_learns_slower():
    model = small_model()
    corank.adapt(model, "moe_lora", rank=2, experts=3, top_k=2)
    groups = corank.controller(model).parameter_groups(1.0)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    op = adapted(model)["0"].adapter("default").operators[1].operator
    assert rates[id(op.router.weight)] == pytest.approx(1e-3)
    assert rates[id(op.a)] == rates[id(op.b)] == 1


@pytest.mark.parametrize(("key", "numbers"), [
    ("moe_lora", lambda out, into: 20 * (4 * (out + into) + into)),
    ("smora", lambda out, into: 64 * (out + into) + 64 * into),
    ("tensorpoly", lambda out, into: 2 * 8 * 16 * (6 + 4) + 8),
])  # fmt: skip
def test_published_defaults_and_counts(key, numbers):
    model = nn.Sequential(nn.Linear(16, 36))
    assert corank.adapt(model, key).totals["trainable"] == numbers(36, 16)


def test_switching_deleting_and_refusing():
    model, bare = small_model(), small_model()
    corank.adapt(model, "moe_lora", rank=2, experts=3, top_k=2)
    stir(model)
    mixed = model(X)
    corank.adapt(model, "lora", name="second", rank=2)
    torch.testing.assert_close(model(X), bare(X))
    corank.adapters.activate(model, {"default": 0.5, "second": 1.0})
    first = model[0](X)
    corank.adapters.activate(model, "default")
    base = bare[0](X)
    torch.testing.assert_close(first, base + 0.5 * (model[0](X) - base))
    torch.testing.assert_close(model(X), mixed)
    for merge in (corank.merge, corank.adapters.merge_adapters):
        with pytest.raises(SiteError, match=r"not one matrix.*activate another"):
            merge(model)
    torch.testing.assert_close(model(X), mixed)
    with pytest.raises(ValueError, match="not one matrix"):
        corank.compress(model, "svd", keep=0.5)
    torch.testing.assert_close(model(X), mixed)
    corank.adapters.delete(model, "default")
    corank.adapters.activate(model, "second")
    torch.testing.assert_close(model(X), bare(X))
    corank.merge(model)


# tensorpoly


def test_tasks_mix_the_same_experts_differently():
    model, _ = adapt(corank.registry.find_method("tensorpoly"), tasks=3, rank=2, experts=2)
    stir(model, scale=1.0)
    ways = []
    for task in range(3):
        set_task(model, task)
        ways.append(model(X).detach())
    assert not torch.allclose(ways[0], ways[1])
    assert not torch.allclose(ways[1], ways[2])
    set_task(model, 0)
    assert torch.equal(model(X), ways[0])
    with pytest.raises(ValueError, match="task 3 is outside 0 to 2"):
        set_task(model, 3)
    plain = small_model()
    corank.adapt(plain, "lora", rank=2)
    with pytest.raises(ValueError, match="has no tasks"):
        set_task(plain, 0)


def test_it_can_start_at_the_weight_itself():
    model = small_model()
    corank.adapt(model, "tensorpoly", rank=2, experts=2, zero_start=True)
    torch.testing.assert_close(model(X), small_model()(X))
    loss(model, X).backward()
    op = adapted(model)["0"].adapter("default").operators[1]
    assert isinstance(op, TensorExperts)
    assert bool(op.b.grad.any())
    assert bool(torch.isfinite(op.b.grad).all())


def test_one_expert_leaves_its_routing_no_choice():
    ways = []
    for routing in ("rank", "order"):
        model = small_model()
        corank.adapt(model, "tensorpoly", rank=2, experts=1, routing=routing)
        ways.append(model(X))
    torch.testing.assert_close(*ways)
