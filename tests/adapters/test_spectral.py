"""Factors that start as parts of the weight: starts, penalties, refusals, coincidences."""

import pytest
import torch
from torch import nn

import corank
from corank.adapters import activate, adapted
from corank.errors import SiteError

from .small import batches, leaves, loss, operators, small_model, stir

X = batches(1)[0]


def adapt(key, model=None, **params):
    model = small_model() if model is None else model
    corank.adapt(model, key, **params)
    return model


def bases(model):
    return {path: weight.base.dense() for path, weight in adapted(model).items()}


def trained(op):
    """The trained factors multiplied out, gate included."""
    low_rank = op.operators[2]
    return getattr(low_rank, "operator", low_rank).dense()


def test_pissa_takes_the_largest_and_milora_the_smallest_triples():
    largest, smallest = adapt("pissa", rank=3), adapt("milora", rank=3)
    for path, w in bases(largest).items():
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        for model, part in ((largest, slice(0, 3)), (smallest, slice(-3, None))):
            op = operators(model)[path]
            torch.testing.assert_close(trained(op), u[:, part] * s[part] @ vh[part])
            held = leaves(op)
            torch.testing.assert_close(held["b_1"].square().sum(0), s[part])
            torch.testing.assert_close(held["a_1"].square().sum(1), s[part])


def test_pissa_and_milora_coincide_at_full_rank():
    model, other = small_model()[2:3], small_model()[2:3]
    pissa, milora = adapt("pissa", model, rank=20), adapt("milora", other, rank=20)
    one, two = operators(pissa)["2"], operators(milora)["2"]
    torch.testing.assert_close(trained(one), trained(two))


def test_milora_refuses_a_weight_with_nothing_there():
    model = nn.Sequential(nn.Linear(6, 6))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(6, 6))
    with pytest.raises(SiteError, match="smallest singular values are zero"):
        corank.adapt(model, "milora", rank=2)


def test_olora_reproduces_the_first_columns_exactly():
    for path, op in operators(model := adapt("olora", rank=5)).items():
        held = leaves(op)
        torch.testing.assert_close(trained(op)[:, :5], bases(model)[path][:, :5])
        torch.testing.assert_close(held["b_1"].mT @ held["b_1"], torch.eye(5, dtype=torch.float64))


def test_sorsa_is_pissa_with_its_values_apart():
    pissa, sorsa = adapt("pissa", rank=4), adapt("sorsa", rank=4)
    for path, op in operators(sorsa).items():
        torch.testing.assert_close(trained(op), trained(operators(pissa)[path]))


def attached(model, lr=1e-2):
    control = corank.controller(model, total_steps=10)
    optimizer = torch.optim.SGD(control.parameter_groups(lr))
    control.attach(optimizer)
    return control, optimizer


def test_sorsa_penalty_is_the_mean_distance_from_orthonormal_over_the_rate():
    model = adapt("sorsa", rank=4, gamma=0.3)
    control, _ = attached(model, lr=0.02)
    assert control.penalty().item() == pytest.approx(0, abs=1e-12)
    stir(model)
    total = []
    for op in operators(model).values():
        held = leaves(op)
        for side in (held["b_1"], held["a_1"].mT):
            gram = side.mT @ side
            total.append((gram - torch.eye(4)).square().sum().sqrt().item())
    expected = 0.3 / 0.02 * sum(total) / len(total)
    assert control.penalty().item() == pytest.approx(expected)


def test_sorsa_penalty_keeps_the_peak_rate_under_a_schedule():
    model = adapt("sorsa", rank=4, gamma=0.3)
    control, optimizer = attached(model, lr=0.02)
    stir(model)
    before = control.penalty().item()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.002)
    assert control.penalty().item() == pytest.approx(before)
    assert schedule.base_lrs == [0.02]


def test_sorsa_penalty_pulls_back_to_orthonormal():
    model = adapt("sorsa", rank=4, gamma=0.5)
    control, optimizer = attached(model)
    stir(model)
    before = control.penalty().item()
    for _ in range(20):
        optimizer.zero_grad()
        (0 * loss(model, batches(1)[0])).backward()
        optimizer.step()
    assert control.penalty().item() < 0.7 * before


def test_sorsa_without_an_optimizer_says_what_to_do():
    control = corank.controller(adapt("sorsa", rank=4))
    with pytest.raises(ValueError, match="attach"):
        control.penalty()


def test_kasa_starts_at_the_truncated_weight():
    model = adapt("kasa", rank=5)
    for path, w in bases(model).items():
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        k = s.shape[0] - 5
        expected = u[:, :k] * s[:k] @ vh[:k]
        torch.testing.assert_close(operators(model)[path].dense(), expected)


def test_kasa_penalty_is_summed_over_the_weights():
    model = adapt("kasa", rank=4, beta=0.2, gamma=0.7)
    stir(model)
    total = 0.0
    for op in operators(model).values():
        held = leaves(op)
        total += 0.2 * held["gate"].square().sum()
        for side in (held["b_1"], held["a_1"].mT):
            total += 0.7 * (side.mT @ side - torch.eye(4)).square().sum().sqrt()
    torch.testing.assert_close(corank.controller(model).penalty(), total)


def test_kasa_leaves_something_of_the_weight():
    with pytest.raises(SiteError, match="leaves nothing"):
        adapt("kasa", rank=16)


def test_rotations_keep_singular_values_and_the_span():
    model = adapt("spectral_adapter", rank=4, form="rotational")
    bare = small_model()(X)
    torch.testing.assert_close(model(X), bare)
    stir(model, scale=1.0)
    for path, w in bases(model).items():
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        turned = operators(model)[path].dense()
        torch.testing.assert_close(torch.linalg.svdvals(turned), s)
        assert not torch.allclose(turned, w)
        torch.testing.assert_close(turned @ vh[4:].mT, u[:, 4:] * s[4:])


def test_rotations_train_two_small_squares():
    report = corank.adapt(small_model(), "spectral_adapter", rank=4, form="rotational")
    assert report.totals["trainable"] == 3 * 2 * 16


def test_adapters_on_disjoint_triples_add_up():
    model = adapt("spectral_adapter", rank=3)
    corank.adapt(model, "spectral_adapter", rank=3, first=3, name="next")
    both = {p: w.adapter("default").dense() + w.adapter("next").dense() - w.base.dense()
            for p, w in adapted(model).items()}  # fmt: skip
    for weight in adapted(model).values():
        one, two = (leaves(weight.adapter(name))["b"] for name in ("default", "next"))
        torch.testing.assert_close(one.mT @ two, torch.zeros(3, 3, dtype=torch.float64))
    activate(model, ["default", "next"])
    for path, weight in adapted(model).items():
        torch.testing.assert_close(weight.dense(), both[path])


@pytest.mark.parametrize("params", [{"form": "other"}, {"rank": 8, "first": 9}, {"rank": 17}])
def test_what_cannot_be_is_refused(params):
    with pytest.raises(ValueError, match=r"form|triples|rank"):
        adapt("spectral_adapter", **params)
