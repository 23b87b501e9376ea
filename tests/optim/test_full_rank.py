"""Fira, APOLLO and FRUGAL against their own formulas."""

import pytest
import torch
from torch import nn

import corank
from corank.optim.bases import seeded
from corank.optim.refreshing import at_most
from corank.optim.transform import Now

from .small import SHAPES, problem, run


def gradients(shape, count):
    g = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=g) for _ in range(count)]


def moved(optimizer, weight, grads):
    path = []
    for grad in grads:
        before = weight.detach().clone()
        weight.grad = grad.clone()
        optimizer.step()
        path.append(before - weight.detach())
    return path


def adam_path(rs, eps=1e-8):
    m, v, out = 0, 0, []
    for t, r in enumerate(rs, 1):
        m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r * r
        out.append(m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + eps))
    return out


@pytest.mark.parametrize("shape", [(6, 14), (14, 6)])
def test_fira_is_its_equation(shape):
    grads = gradients(shape, 5)
    weight = nn.Parameter(torch.zeros(shape))
    path = moved(corank.optim.Fira([weight], 1.0, rank=3, scale=0.5, basis="svd"), weight, grads)
    xs = grads if shape[0] < shape[1] else [g.T for g in grads]
    p = torch.linalg.svd(xs[0]).U[:, :3]
    rs = [p.T @ x for x in xs]
    last = None
    for x, r, u, step in zip(xs, rs, adam_path(rs), path, strict=True):
        rest = u.norm(dim=0) / r.norm(dim=0) * (x - p @ r)
        if last is not None and rest.norm() > 1.01 * last:
            rest = rest * 1.01 * last / rest.norm()
        last = rest.norm()
        want = 0.5 * p @ u + rest
        torch.testing.assert_close(
            step, want if shape[0] < shape[1] else want.T, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("by", ["channel", "tensor"])
def test_apollo_is_its_equation(by):
    grads = gradients((6, 14), 4)
    weight = nn.Parameter(torch.zeros(6, 14))
    optimizer = corank.optim.APOLLO([weight], 1.0, rank=3, scale=4.0, by=by, growth=1e9, seed=5)
    path = moved(optimizer, weight, grads)
    basis = seeded(at_most(3), lambda state, now: False)
    now = Now(1, 0, 1, {"seed": 5}, weight)
    p = basis.frame(grads[0], {"drawn": 1}, now).up(torch.eye(3))
    assert p.square().mean().item() == pytest.approx(1 / 3, rel=0.6)
    rs = [p.T @ x for x in grads]
    axes = (0,) if by == "channel" else (0, 1)
    for x, r, u, step in zip(grads, rs, adam_path(rs), path, strict=True):
        gain = u.norm(dim=axes, keepdim=True) / r.norm(dim=axes, keepdim=True)
        torch.testing.assert_close(step, 2 * gain * x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["Fira", "APOLLO"])
def test_the_limiter_holds_a_spike_down(name):
    grads = gradients((6, 14), 4)
    grads[2] = 1000 * torch.randn(6, 14, generator=torch.Generator().manual_seed(9))
    lengths = []
    for growth in (1.01, 1e9):
        weight = nn.Parameter(torch.zeros(6, 14))
        kind = getattr(corank.optim, name)
        path = moved(kind([weight], 1.0, rank=3, growth=growth, eps=1.0), weight, grads)
        lengths.append([p.norm().item() for p in path])
    assert lengths[0][2] < 0.5 * lengths[1][2]
    if name == "APOLLO":
        assert lengths[0][2] <= 1.0101 * lengths[0][1]


def test_frugal_is_its_equation_and_adam_starts_anew():
    grads = gradients((8, 14), 6)
    weight = nn.Parameter(torch.zeros(8, 14))
    optimizer = corank.optim.FRUGAL([weight], 1.0, every=3, basis="svd", rest_scale=0.5)
    path = moved(optimizer, weight, grads)
    for part in (slice(0, 3), slice(3, 6)):
        p = torch.linalg.svd(grads[part][0]).U[:, :2]
        rs = [p.T @ x for x in grads[part]]
        for x, r, u, step in zip(grads[part], rs, adam_path(rs), path[part], strict=True):
            want = p @ u + 0.5 * (x - p @ r).sign()
            torch.testing.assert_close(step, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_full_rank_fira_and_frugal_are_adam(shape):
    small = min(SHAPES[shape])
    plain, loss = problem(SHAPES[shape])
    want = run(torch.optim.Adam([plain], 0.01), plain, loss, 10)
    for kind, options in (
        (corank.optim.Fira, {"rank": small, "scale": 1.0}),
        (corank.optim.FRUGAL, {"density": 1.0}),
    ):
        weight, _ = problem(SHAPES[shape])
        found = run(kind([weight], 0.01, basis="identity", **options), weight, loss, 10)
        for p, q in zip(found, want, strict=True):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Fira", {"growth": 0.5}, "growth must be at least 1"),
        ("APOLLO", {"by": "chanel"}, "did you mean 'channel'"),
        ("FRUGAL", {"density": 1.5}, "density must be in"),
        ("FRUGAL", {"rest": "signs"}, "did you mean 'sign'"),
    ],
)
def test_bad_options(name, options, said):
    with pytest.raises(ValueError, match=said):
        getattr(corank.optim, name)([nn.Parameter(torch.ones(3, 3))], **options)
