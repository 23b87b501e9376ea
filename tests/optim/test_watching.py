"""MKOR and SINGD: what is seen of layers, and the factors against explicit inverses."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import corank
from corank.optim import state_bytes
from corank.optim.curvature import without_rank_one
from corank.optim.transform import Now

from .small import WATCHING, batch, model, train
from .test_laws import saved_and_loaded

KINDS = {
    "mkor": {"every": 2, "lr": 0.05},
    "singd": {"every": 2, "lr": 0.01, "rate": 0.1},
    "singd, diagonal": {"every": 2, "lr": 0.01, "rate": 0.1, "structure": "diagonal"},
}


def make(kind, net, **options):
    return WATCHING[kind.split(",")[0]](net, **(KINDS[kind] | options))


def loss_of(net):
    x, y = batch(99)
    return nn.functional.mse_loss(net(x), y).item()


def test_every_registered_one_is_here():
    registered = {m.key for m in corank.methods("optimize") if "watching" in m.laws}
    assert registered == set(WATCHING) == {kind.split(",")[0] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_descends(kind):
    net = model()
    before = loss_of(net)
    train(net, make(kind, net), range(60))
    assert loss_of(net) < 0.7 * before


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_what_the_formula_says(kind):
    net = model()
    optimizer = make(kind, net)
    planned = state_bytes(optimizer)
    train(net, optimizer, range(3))
    numbers = {"mkor": 1, "singd": 2}[kind.split(",")[0]]
    sides = [s if "diagonal" in kind else s * s for p in net.parameters() if p.ndim == 2
             for s in p.shape]  # fmt: skip
    matrices = sum(p.numel() for p in net.parameters() if p.ndim == 2)
    vectors = sum(p.numel() for p in net.parameters() if p.ndim == 1)
    wanted = 4 * (numbers * sum(sides) + matrices + 2 * vectors)
    assert planned == state_bytes(optimizer) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(kind):
    def fresh():
        net = model()
        return net, make(kind, net, weight_decay=0.1)

    whole, first, second = fresh(), fresh(), fresh()
    train(*whole, range(9))
    train(*first, range(4))
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(saved_and_loaded(old.state_dict()))
    train(*second, range(4, 9))
    for p, q in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(p, q)


def seen_by(kind, run):
    net = model()
    optimizer = make(kind, net)
    run(net)
    return {p.shape: sight.taken(1, 1) for p, sight in optimizer.sights.items()}


def layer_by_layer(net, x):
    """The first layer's inputs and outputs, the rest after them."""
    y = net[0](x)
    y.retain_grad()
    return y, net[1:](y)


def test_what_is_seen_is_the_means_and_the_moments():
    x, t = batch(0)
    found = {}

    def run(net):
        y, out = layer_by_layer(net, x)
        nn.functional.mse_loss(out, t).backward()
        found["dy"] = y.grad

    mkor, singd = seen_by("mkor", run), seen_by("singd", run)
    slim = seen_by("singd, diagonal", run)
    shape, tokens = torch.Size((20, 12)), len(x)
    per_token = found["dy"] * tokens
    for side, rows in (("in", x), ("out", per_token)):
        torch.testing.assert_close(mkor[shape][side], rows.mean(0))
        torch.testing.assert_close(singd[shape][side], rows.T @ rows / tokens)
        torch.testing.assert_close(slim[shape][side], rows.square().mean(0))


def test_accumulation_averages_and_checkpointing_changes_nothing():
    (x, t), (x2, t2) = batch(0), batch(1)

    def once(*pairs, rerun=False):
        def run(net):
            for a, b in pairs:
                out = checkpoint(net, a, use_reentrant=False) if rerun else net(a)
                nn.functional.mse_loss(out, b).backward()

        return seen_by("singd", run)

    one, two, both = once((x, t)), once((x2, t2)), once((x, t), (x2, t2))
    again = once((x, t), rerun=True)
    for shape, seen in both.items():
        for side, value in seen.items():
            torch.testing.assert_close(value, (one[shape][side] + two[shape][side]) / 2)
            torch.testing.assert_close(again[shape][side], one[shape][side])


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_leaves_no_trace(kind):
    once, again = model(), model()
    steady, shaken = make(kind, once), make(kind, again)
    train(once, steady, range(3))
    train(again, shaken, range(2))
    shaken.zero_grad()
    x, _ = batch(7)
    (again(x) * float("inf")).sum().backward()
    with pytest.warns(UserWarning, match="not finite"):
        shaken.step()
    train(again, shaken, range(2, 3))
    for p, q in zip(once.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_layers_are_looked_at_only_for_the_steps_that_need_it():
    net = model()
    optimizer = make("mkor", net, every=3)
    looked = []
    for step in range(7):
        x, y = batch(step)
        nn.functional.mse_loss(net(x), y).backward()
        looked.append([sight.passes for sight in optimizer.sights.values()])
        optimizer.step()
    assert looked == [[1, 1], [0, 0], [0, 0], [1, 1], [0, 0], [0, 0], [1, 1]]


def test_layers_are_left_alone_once_the_optimiser_is_gone():
    net = model()
    optimizer = make("mkor", net)
    assert len(net[0]._forward_hooks) == 1
    del optimizer
    gc.collect()
    assert not net[0]._forward_hooks


def test_weights_alone_are_refused():
    with pytest.raises(ValueError, match="give it the model, not its parameters"):
        corank.optim.MKOR(model().parameters())


def test_rank_one_steps_are_the_inverse_of_the_moving_average():
    g = torch.Generator().manual_seed(0)
    factor = torch.eye(7, dtype=torch.float64)
    inverse = factor.clone()
    for _ in range(12):
        v = torch.randn(7, generator=g, dtype=torch.float64)
        factor = 0.8 * factor + 0.2 * torch.outer(v, v)
        inverse = without_rank_one(inverse, v, 0.8)
    torch.testing.assert_close(inverse, torch.linalg.inv(factor))


def steps(transform, weight, seen, gradient, count):
    """The last direction, and the state, after steps that all see and get the same."""
    state = transform.start(weight)
    options = {"betas": (0.0, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    for step in range(1, count + 1):
        out, state = transform.update(gradient, state, Now(step, 0, 1, options, weight, seen))
    return out, state


def test_mkor_is_the_gradient_between_its_inverses_and_as_long():
    g = torch.Generator().manual_seed(1)
    weight, gradient = torch.zeros(5, 4).double(), torch.randn(5, 4, generator=g).double()
    seen = {s: torch.randn(n, generator=g).double() for s, n in (("out", 5), ("in", 4))}
    transform = corank.optim.MKOR.transform(every=2, keep=0.9, ceiling=float("inf"))
    out, _ = steps(transform, weight, seen, gradient, 5)
    factors = {}
    for side, v in seen.items():
        factor = torch.eye(len(v)).double()
        for _ in range(3):
            factor = 0.9 * factor + 0.1 * torch.outer(v, v)
        factors[side] = torch.linalg.inv(factor)
    want = factors["out"] @ gradient @ factors["in"]
    torch.testing.assert_close(out, want * gradient.norm() / want.norm())


def test_mkors_factors_do_not_grow_without_bound():
    weight = torch.zeros(5, 4)
    seen = {"out": torch.ones(5), "in": torch.ones(4)}
    transform = corank.optim.MKOR.transform(every=1, keep=0.9)
    _, state = steps(transform, weight, seen, torch.ones(5, 4), 200)
    assert max(state[f"inverse_{s}"].abs().max() for s in ("out", "in")) < 3


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
def test_singd_converges_to_the_inverse_curvature(structure):
    g = torch.Generator().manual_seed(2)
    weight, gradient = torch.zeros(4, 6).double(), torch.randn(4, 6, generator=g).double()
    moments = {}
    for side, n in (("out", 4), ("in", 6)):
        rows = torch.randn(40, n, generator=g).double() * torch.linspace(0.5, 1.5, n)
        moments[side] = rows.T @ rows / 40
    seen = moments if structure == "dense" else {k: t.diagonal() for k, t in moments.items()}
    transform = corank.optim.SINGD.transform(
        every=1, structure=structure, rate=0.05, keep=0.5, damping=0.0
    )
    out, _ = steps(transform, weight, seen, gradient, 600)
    a, b = (t if structure == "dense" else t.diagonal().diag() for t in moments.values())
    want = torch.linalg.inv(a) @ gradient @ torch.linalg.inv(b)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)


def test_singd_is_its_update():
    g = torch.Generator().manual_seed(4)
    weight, gradient = torch.zeros(3, 4).double(), torch.randn(3, 4, generator=g).double()
    u = torch.randn(4, 4, generator=g).double()
    v = torch.randn(3, 3, generator=g).double()
    u, v = u @ u.T, v @ v.T
    transform = corank.optim.SINGD.transform(every=1, rate=0.1, keep=0.6, damping=0.2)
    out, _ = steps(transform, weight, {"out": v, "in": u}, gradient, 3)
    k, c = torch.eye(4).double(), torch.eye(3).double()
    mk, mc = torch.zeros_like(k), torch.zeros_like(c)
    for _ in range(3):
        hk, hc, kk, cc = k.T @ u @ k, c.T @ v @ c, k.T @ k, c.T @ c
        mk = 0.6 * mk + (hc.trace() * hk + 0.2 * cc.trace() * kk - 3 * torch.eye(4)) / (2 * 3)
        mc = 0.6 * mc + (hk.trace() * hc + 0.2 * kk.trace() * cc - 4 * torch.eye(3)) / (2 * 4)
        k, c = k - 0.1 * k @ mk, c - 0.1 * c @ mc
    torch.testing.assert_close(out, c @ c.T @ gradient @ k @ k.T)


def test_damping_shrinks_singds_step():
    g = torch.Generator().manual_seed(3)
    weight, gradient = torch.zeros(4, 6), torch.randn(4, 6, generator=g)
    seen = {"out": 1e-3 * torch.eye(4), "in": 1e-3 * torch.eye(6)}
    lengths = [
        steps(corank.optim.SINGD.transform(1, "dense", 0.05, 0.5, d), weight, seen, gradient, 300)[
            0
        ].norm()
        for d in (0.0, 0.1)
    ]
    assert lengths[1] < 0.2 * lengths[0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("MKOR", {"every": 0}, "every must be at least 1"),
        ("MKOR", {"keep": 1.0}, r"keep must be in \[0, 1\)"),
        ("SINGD", {"structure": "diag"}, "did you mean 'diagonal'"),
        ("SINGD", {"damping": -1.0}, "damping must be at least 0"),
    ],
)
def test_bad_options(name, options, said):
    with pytest.raises(ValueError, match=said):
        getattr(corank.optim, name)(model(), **options)
