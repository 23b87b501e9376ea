"""Other rates, other gradients, other data for some of the leaves; tasks one after another."""

import pytest
import torch

import corank
from corank.control import alternate
from corank.errors import SiteError

from .small import batches, leaves, loss, operators, small_model
from .training import begin, delta, products, steps

X = batches(1)[0]


# LoRA+


def test_lora_pluss_b_learns_faster():
    _, control, optimizer = begin("lora_plus", ratio=20.0, lr=1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for op in products(control).values():
        assert rates[id(op.a)] == 1e-3
        assert rates[id(op.b)] == pytest.approx(2e-2)
    with pytest.raises(ValueError, match=r"ratio=0\.5 must be at least 1"):
        begin("lora_plus", ratio=0.5)


def test_lora_plus_at_one_is_lora():
    outputs = []
    for method, own in (("lora", {}), ("lora_plus", {"ratio": 1.0})):
        model, _, optimizer = begin(method, **own)
        steps(model, optimizer, range(6))
        outputs.append(model(X).detach())
    assert torch.equal(*outputs)


# ALLoRA


def test_alloras_layers_below_see_the_plain_gradient():
    model, _, optimizer = begin("allora", rank=3, eta2=4.0)
    steps(model, optimizer, range(5))
    p = {path: leaves(op) for path, op in operators(model).items()}
    weights = {path: op.operators[0].dense() for path, op in operators(model).items()}
    x = X
    inputs, preactivations = {}, {}
    for path in ("0", "2", "4"):
        layer = model[int(path)]
        inputs[path] = x
        y = x @ (weights[path] + p[path]["b"] @ p[path]["a"]).mT.detach() + layer.bias
        preactivations[path] = y.detach().requires_grad_()
        x = preactivations[path].tanh() if path != "4" else preactivations[path]
    model.zero_grad()
    loss(model, X).backward()
    (g,) = torch.autograd.grad((preactivations["4"] - 1).square().mean(), preactivations["4"])
    for path, below in (("4", "2"), ("2", "0"), ("0", None)):
        b, a = p[path]["b"].detach(), p[path]["a"].detach()
        d = 1 / torch.sqrt((b @ a).norm(dim=1) + 1 / 4.0)
        torch.testing.assert_close(p[path]["b"].grad, (d * g).mT @ inputs[path].detach() @ a.mT)
        torch.testing.assert_close(p[path]["a"].grad, b.mT @ (d * g).mT @ inputs[path].detach())
        if below is not None:
            back = g @ (weights[path] + b @ a)
            g = (back * (1 - preactivations[below].tanh() ** 2)).detach()


@pytest.mark.parametrize("eta2", [1.0, 4.0])
def test_alloras_first_gradient_is_loras_times_eta(eta2):
    gradients = []
    for method, own in (("lora", {"alpha": 8.0}), ("allora", {"eta2": eta2})):
        model, control, _ = begin(method, rank=8, **own)
        loss(model, X).backward()
        gradients.append([op.b.grad for op in products(control).values()])
    for plain, scaled in zip(*gradients, strict=True):
        torch.testing.assert_close(scaled, eta2**0.5 * plain)


# BiLoRA


def test_biloras_levels_take_turns():
    model, control, optimizer = begin("bilora", inner=2, rank=3)
    steps(model, optimizer, range(3))
    for number in range(3, 9):
        before = [
            (op.a.clone(), op.b.clone(), op.gate.clone()) for op in products(control).values()
        ]
        steps(model, optimizer, [number])
        for op, (a, b, gate) in zip(products(control).values(), before, strict=True):
            above = number % 3 == 2
            assert torch.equal(op.gate, gate) != above
            assert torch.equal(op.a, a) == above
            assert torch.equal(op.b, b) == above


def test_biloras_values_never_see_the_vectors_split():
    model, control, optimizer = begin("bilora", inner=1, orthogonal=0.0)
    seen = {"lower": [], "upper": []}
    stream = alternate(
        [("lower", b) for b in batches(2)], [("upper", b) for b in batches(2, seed=5)]
    )
    for _ in range(6):
        split, batch = next(stream)
        before = next(iter(products(control).values())).gate.clone()
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        after = next(iter(products(control).values())).gate
        seen[split].append(not torch.equal(before, after))
    assert seen == {"lower": [False] * 3, "upper": [True] * 3}


def test_biloras_penalties():
    _, control, _ = begin("bilora", rank=2, orthogonal=0.5, binary=3.0)
    gates, distances = [], []
    for op in products(control).values():
        op.gate.data = torch.tensor([0.5, 2.0], dtype=torch.float64)
        gates.append(op.gate.detach())
        for factor in (op.a, op.b.mT):
            distances.append((factor @ factor.mT - torch.eye(2)).square().sum().sqrt())
    binary = torch.cat([(g * (1 - g)) ** 2 for g in gates]).mean()
    expected = 0.5 * torch.stack(distances).mean() + 3.0 * binary
    torch.testing.assert_close(control.penalty(), expected)


# DiffoRA


def test_diffora_decides_which_weights_keep_theirs():
    model, control, optimizer = begin("diffora", total=20, search=0.4, keep=0.5, rank=3, lr=0.05)
    logits = {}
    steps(model, optimizer, range(7))
    logits = {path: leaves(op)["logit"].item() for path, op in operators(model).items()}
    lost = min(logits, key=logits.get)
    steps(model, optimizer, range(7, 9))
    for path, op in operators(model).items():
        p = leaves(op)
        expected = torch.zeros_like(delta(model, path)) if path == lost else (
            16.0 / 3 * p["b"] @ p["a"]
        ).detach()  # fmt: skip
        torch.testing.assert_close(delta(model, path), expected)
        assert [leaf.requires_grad for leaf in op.parameters()] == [False] + [path != lost] * 2
    before = model(X)
    assert corank.adapters.compact(model, optimizer, control) == 3
    torch.testing.assert_close(model(X), before)
    steps(model, optimizer, range(9, 12))
    assert not torch.allclose(model(X), before)


# Tasks one after another


def test_a_later_task_adds_ranks_and_leaves_the_earlier_as_it_was():
    model, _, optimizer = begin("incremental_rank", rank=3, name="one")
    steps(model, optimizer, range(8))
    first = model(X).detach()
    report = corank.adapt(model, "incremental_rank", rank=3, added=1, name="two", after="one")
    sizes = [36 + 16, 20 + 36, 20 + 20]
    assert report.totals["trainable"] == sum(n + 1 + 3 for n in sizes)
    assert report.totals["stored"] == report.totals["trainable"] + 3 * sum(sizes)
    torch.testing.assert_close(model(X), small_model()(X))
    control = corank.controller(model)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    steps(model, optimizer, range(8))
    second = model(X).detach()
    weight = corank.adapters.adapted(model)["0"]
    old, new = weight.adapter("one").operators[1], weight.adapter("two").operators[1:]
    assert new[0].b is old.b
    assert new[0].gate is not old.gate
    assert new[0].gate.any()
    assert torch.linalg.matrix_rank(weight.adapter("two").dense() - weight.base.dense()) == 4
    with corank.adapters.select(model, ["one"] * 16 + ["two"] * 16):
        torch.testing.assert_close(model(X), torch.cat([first[:16], second[16:]]))
    corank.adapters.activate(model, "one")
    torch.testing.assert_close(model(X), first)
    assert not old.b.requires_grad  # a later task stands on it


def test_new_ranks_are_orthonormal_and_start_unselected():
    _, control, _ = begin("incremental_rank", rank=4)
    for op in products(control).values():
        identity = torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close((op.b.mT @ op.b).detach(), identity)
        torch.testing.assert_close((op.a @ op.a.mT).detach(), identity)
        assert not op.gate.any()


def test_a_task_needs_the_one_before():
    model, _, _ = begin("incremental_rank", name="one")
    with pytest.raises(SiteError, match=r"no task 'zero' of incremental_rank \(has: one\)"):
        corank.adapt(model, "incremental_rank", name="two", after="zero")
    corank.adapt(model, "lora", name="three")
    with pytest.raises(SiteError, match="no task 'three'"):
        corank.adapt(model, "incremental_rank", name="four", after="three")


def test_three_tasks_are_three_functions():
    model, expected = small_model(), {}
    for number, name in enumerate(("one", "two", "three")):
        after = None if number == 0 else list(expected)[-1]
        corank.adapt(model, "incremental_rank", rank=2, name=name, after=after)
        control = corank.controller(model)
        optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
        control.attach(optimizer)
        steps(model, optimizer, range(number, number + 6))
        expected[name] = model(X).detach()
    for name, output in expected.items():
        corank.adapters.activate(model, name)
        torch.testing.assert_close(model(X), output)
    assert len(corank.adapters.adapted(model)["0"].adapter("three").operators) == 4
