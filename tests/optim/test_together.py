"""Parameters of equal shapes step as one stack: as fast, and to the same weights."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.optim import advancing

from .small import CLASSES, keys, make

SHAPES = [(8, 14)] * 3 + [(14, 8)] * 3 + [(9, 9)] * 2 + [(5, 4, 2)] * 2 + [(6,), ()]

#: Whose numbers (when a basis was drawn or moments began anew) differ between parameters, or that
#: look at the weight.
APART = {
    "adamp", "apollo", "cautious_wd", "flora_optim", "frugal", "galore_plus", "gradnormlorp",
    "mfac", "smmf",
}  # fmt: skip


def path(key, monkeypatch, room, steps=9, **options):
    """The weights after some steps with rooms for so many numbers, and the calls of updates."""
    monkeypatch.setattr(advancing, "_ROOM_ON_CPU", room)
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]
    optimizer, calls = make(key, params, weight_decay=0.1, **options), []
    taken = advancing._take
    monkeypatch.setattr(advancing, "_take", lambda t, *a: (calls.append(len(t)), taken(t, *a))[1])
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=g)
            if (i, step) == (1, 4):
                p.grad = None
        optimizer.step()
    monkeypatch.undo()
    return params, optimizer, calls


@pytest.mark.parametrize("key", keys())
def test_stacked_and_one_by_one_are_the_same(key, monkeypatch):
    apart, one, _ = path(key, monkeypatch, 0)
    joined, other, calls = path(key, monkeypatch, 2**19)
    for p, q in zip(apart, joined, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for name, value in one.state[p].items():
            again = other.state[q][name]
            if isinstance(value, torch.Tensor):
                if name not in ("basis_codes", "basis_scales"):
                    torch.testing.assert_close(value, again, rtol=1e-4, atol=1e-5)
                assert again.untyped_storage().nbytes() == again.nbytes
            else:
                assert value == again
    assert max(calls) > 1 or key in APART


def test_resume_in_the_middle_of_stacks_is_exact(monkeypatch):
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(6, 9, generator=g)) for _ in range(5)]
    optimizer = make("galore", params, every=7)
    for step in range(20):
        if step == 11:
            twins = [nn.Parameter(p.detach().clone()) for p in params]
            second = make("galore", twins, every=7)
            second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for i, p in enumerate(params):
            p.grad = torch.randn(6, 9, generator=g)
            if step >= 11:
                twins[i].grad = p.grad.clone()
        optimizer.step()
        if step >= 11:
            second.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_projected_goes_through_torchs_adamw(dtype):
    g = torch.Generator().manual_seed(0)
    shapes = [(7,), (30, 4), (), (3, 3, 3)]
    ours = [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    mine = corank.optim.GaLore([{"params": ours, "project": False}], **options)
    torchs = torch.optim.AdamW(theirs, **options)
    for step in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=g).to(dtype)
            q.grad = p.grad.clone()
        if step == 3:
            ours[0].grad = theirs[0].grad = None
        mine.step()
        torchs.step()
    for p, q in zip(ours, theirs, strict=True):
        exact = dtype != torch.bfloat16  # theirs keeps its moments in bfloat16
        torch.testing.assert_close(p, q, rtol=1e-6 if exact else 2e-2, atol=1e-6 if exact else 2e-2)
        assert isinstance(mine.state[p]["step"], int)


@pytest.mark.parametrize("key", sorted(CLASSES))
def test_a_transform_is_made_once(key, monkeypatch):
    kind, made = CLASSES[key], []
    recipe = kind.transform

    def counted(*args, **options):
        made.append(1)
        return recipe(*args, **options)

    counted.__signature__ = __import__("inspect").signature(recipe)
    monkeypatch.setattr(kind, "transform", staticmethod(counted))
    weight = nn.Parameter(torch.randn(6, 9))
    optimizer = make(key, [weight])
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert len(made) == 1
