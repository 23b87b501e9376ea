"""GaLore's kin against their own formulas."""

import itertools
import math

import pytest
import torch
from torch import nn

import corank
from corank.optim import bases, learned
from corank.optim.quantised import int4
from corank.optim.refreshing import at_most
from corank.optim.transform import Now

from .test_full_rank import adam_path, gradients, moved

STEPPED = Now(2, 0, 1, {"lr": 0.01}, torch.zeros(1))


def never(state, now):
    return False


def test_cosines_are_an_orthonormal_basis_and_the_largest_are_taken():
    table = bases._cosines(8, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(table.T @ table, torch.eye(8, dtype=torch.float64))
    j = torch.arange(8, dtype=torch.float64)
    torch.testing.assert_close(table[:, 3], 0.5 * torch.cos(math.pi / 8 * (j + 0.5) * 3))
    x = 3 * table[:, [5]] @ torch.ones(1, 9, dtype=torch.float64) + table[:, [2]]
    state = bases.dct(at_most(2), never).refresh(x, {}, STEPPED)
    assert state["columns"].tolist() == [2, 5]


def test_grass_moves_only_the_largest_rows():
    weight = nn.Parameter(torch.zeros(6, 9))
    grad = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    grad[[1, 4]] *= 10
    (step,) = moved(corank.optim.Grass([weight], 1.0, rank=2, scale=1.0), weight, [grad])
    assert step.abs().sum(1).nonzero().flatten().tolist() == [1, 4]
    torch.testing.assert_close(step[[1, 4]], grad[[1, 4]].sign())


def test_a_kept_row_keeps_its_moments():
    grads = gradients((6, 9), 3)
    for grad, rows in zip(grads, ([1, 4], [1, 4], [4, 5]), strict=True):
        grad[rows] *= 100
    weight = nn.Parameter(torch.zeros(6, 9))
    path = moved(corank.optim.Grass([weight], 1.0, rank=2, scale=1.0, every=2), weight, grads)
    torch.testing.assert_close(
        path[2][4], adam_path([g[4] for g in grads])[2], atol=1e-5, rtol=1e-4
    )


def test_online_pca_descends_its_objective():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=g) @ torch.randn(3, 30, generator=g)
    basis = learned.online_pca(at_most(3), 1.0, 0.1)
    p = torch.linalg.qr(torch.randn(12, 3, generator=g)).Q
    state = basis.start(x) | {"basis": p}

    def missed(p):
        q = torch.linalg.qr(p).Q
        return ((q @ q.T @ x - x).norm() / x.norm()).item()

    before = missed(p)
    for step in range(2, 400):
        state = basis.refresh(x, state, Now(step, 0, 1, {"lr": 0.01}, x))
    assert before > 0.5
    assert missed(state["basis"]) < 0.05
    p = state["basis"]
    torch.testing.assert_close(p.T @ p, torch.eye(3), atol=0.1, rtol=0)


def test_coap_steps_down_its_objective_and_starts_anew():
    g = torch.Generator().manual_seed(0)
    x, moment = torch.randn(8, 20, generator=g), torch.randn(3, 20, generator=g)
    p = torch.linalg.qr(torch.randn(8, 3, generator=g)).Q
    basis = learned.correlated(at_most(3), never, 3)

    def loss(p):
        cosine = torch.cosine_similarity(p @ moment, x, dim=0).mean()
        return ((p @ p.T @ x - x) ** 2).mean() * (1 - cosine)

    leaf = p.clone().requires_grad_()
    loss(leaf).backward()
    slope = leaf.grad / max(1.0, leaf.grad.norm())
    state = {"basis": p, "exp_avg": moment, "refreshes": 0}
    state = basis.refresh(x, state, STEPPED)
    torch.testing.assert_close(state["basis"], p - 0.1 * slope)
    assert loss(state["basis"]) < loss(p)
    state = basis.refresh(x, basis.refresh(x, state, STEPPED), STEPPED)
    assert state["refreshes"] == 3
    torch.testing.assert_close(state["basis"].T @ state["basis"], torch.eye(3), atol=1e-5, rtol=0)


def test_subset_norm_momentum_is_its_equation():
    for shape in ((6, 9), (9, 6)):
        grads = gradients(shape, 4)
        weight = nn.Parameter(torch.zeros(shape))
        options = {"rank": 2, "basis": "svd"}
        path = moved(corank.optim.SubsetNormMomentum([weight], 1.0, **options), weight, grads)
        xs = grads if shape[0] < shape[1] else [g.T for g in grads]
        p, m, v = torch.linalg.svd(xs[0]).U[:, :2], 0, 0
        for t, (x, step) in enumerate(zip(xs, path, strict=True), 1):
            m = 0.9 * m + 0.1 * p.T @ x
            v = 0.999 * v + 0.001 * x.square().sum(1, keepdim=True)
            up = p @ m / (1 - 0.9**t) + x - p @ p.T @ x
            want = up / (v / (1 - 0.999**t)).sqrt()
            torch.testing.assert_close(step if xs is grads else step.T, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_gradnormlorp_splits_rows_into_length_and_direction(shape):
    (grad,) = gradients(shape, 1)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight = nn.Parameter(start.clone())
    options = {"rank": 6, "scale": 1.0, "basis": "identity", "eps": 0.0}
    lr = 1e-3
    (step,) = moved(corank.optim.GradNormLoRP([weight], lr, **options), weight, [grad])
    length = start.norm(dim=1, keepdim=True)
    along = start / length
    slope = (along * grad).sum(1, keepdim=True)
    v = start - lr * (grad - along * slope).sign()  # Adam's first step is the sign
    want = (length - lr * slope.sign()) * v / v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(start - step, want, atol=2e-5, rtol=0)


def test_flora_carries_its_momentum_over():
    grads = [torch.ones(40, 60)] * 40
    weight = nn.Parameter(torch.zeros(40, 60))
    options = {"rank": 20, "every": 10}
    path = moved(corank.optim.Flora([weight], 1.0, **options), weight, grads)
    alike = [torch.cosine_similarity(s.flatten(), torch.ones(2400), dim=0).item() for s in path]
    assert min(alike) > 0.25
    assert not torch.allclose(path[9], path[10], atol=1e-2)


def test_four_bits_hold_a_basis():
    x = torch.randn(24, 50, generator=torch.Generator().manual_seed(0))
    plain = bases.svd(at_most(20), never)
    packed = int4(plain)
    state = packed.refresh(x, packed.start(x), STEPPED)
    assert state["basis_codes"].dtype == torch.uint8
    assert state["basis_codes"].numel() == 256
    want = plain.refresh(x, plain.start(x), STEPPED)["basis"]
    found = packed.frame(x, state, STEPPED).matrix
    assert (found - want).abs().max() <= want.abs().max() / 14 + 1e-6


def test_a_settled_basis_is_refreshed_less_often(monkeypatch):
    found, done = bases.subspace_iteration, []
    monkeypatch.setattr(bases, "subspace_iteration", lambda *a: done.append(now) or found(*a))
    weight = nn.Parameter(torch.zeros(8, 12))
    optimizer = corank.optim.QGaLore([weight], rank=2, every=2)
    still = torch.outer(torch.arange(8.0), torch.arange(12.0))
    for now in range(40):  # noqa: B007 (the list above reads it)
        weight.grad = still.clone()
        optimizer.step()
    gaps = [b - a for a, b in itertools.pairwise(done)]
    assert gaps[0] == 2
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 4


def test_heads_share_a_basis_and_entries_of_the_rest_move():
    weight = nn.Parameter(torch.zeros(12, 20))
    grads = gradients((12, 20), 3)
    optimizer = corank.optim.GaLorePlus([weight], 1.0, rank=2, heads=3, scale=1.0, residual=0.05)
    path = moved(optimizer, weight, grads)
    state = optimizer.state[weight]
    assert state["basis"].shape == (4, 2)
    assert state["exp_avg"].shape == (3, 2, 20)
    p = state["basis"]
    assert path[0].shape == (12, 20)
    for x, step, places in zip(
        grads[0].view(3, 4, 20), path[0].view(3, 4, 20), state["places"].long(), strict=True
    ):
        rest = (x - p @ p.T @ x).flatten()
        assert set(places.tolist()) == set(rest.abs().topk(4).indices.tolist())
        want = (p @ (p.T @ x).sign()).flatten()
        want[places] += rest[places].sign()
        torch.testing.assert_close(step.flatten(), want, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="heads=5 does not divide"):
        corank.optim.GaLorePlus([weight], heads=5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("GaLorePlus", {"residual": 0}, "residual must be in"),
        ("QGaLore", {"basis": "dct"}, "keeps no matrix"),
        ("COAP", {"anew": 0}, "anew must be at least 1"),
        ("OnlineSubspaceDescent", {"rate": -1}, "rate must be at least 0"),
    ],
)
def test_bad_options(name, options, said):
    with pytest.raises(ValueError, match=said):
        getattr(corank.optim, name)([nn.Parameter(torch.ones(3, 3))], **options)
