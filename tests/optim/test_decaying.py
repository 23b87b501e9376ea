"""Cautious decay and AdamP against their own equations, and against pytorch-optimizer's AdamP."""

import pytest
import torch
from torch import nn

import corank
from corank.optim.inner import INNER

from .small import problem, run


@pytest.mark.parametrize("inner", ["adam", "lion", "muon"])
def test_cautious_decay_is_its_equation(inner):
    weight, loss = problem((10, 14))
    bare, _ = problem((10, 14))
    lr, decay = 0.01, 0.5
    ours = corank.optim.CautiousDecay([weight], lr, inner=inner, weight_decay=decay)
    plain = corank.optim.optimizer("Bare", INNER[inner])([bare], lr)
    spared = 0
    for _ in range(8):
        start = weight.detach().clone()
        bare.data.copy_(start)
        (update,) = [(start - p) / lr for p in run(plain, bare, loss, 1)]
        (moved,) = run(ours, weight, loss, 1)
        agree = (update * start >= 0).float()
        spared += int((agree == 0).sum())
        torch.testing.assert_close(
            moved, start - lr * (update + decay * agree * start), rtol=1e-5, atol=1e-6
        )
    assert spared > 0


def literal_adamp(weight, grads, lr, decay, delta=0.1, ratio=0.1, eps=1e-8):
    """The paper's rule, row by row and then over the whole, and which tests fired."""
    m, v, fired, path = 0, 0, [], []
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + eps)
        keep, said = 1.0, "neither"
        for name, view in (("rows", weight.shape), ("whole", (1, weight.numel()))):
            w, gv, pv = weight.reshape(view), g.reshape(view), p.reshape(view)
            cosine = nn.functional.cosine_similarity(w, gv, 1).abs().max()
            if cosine < delta / view[1] ** 0.5:
                unit = w / w.norm(dim=1, keepdim=True)
                p = (pv - unit * (unit * pv).sum(1, keepdim=True)).reshape(weight.shape)
                keep, said = ratio, name
                break
        weight = weight * (1 - lr * decay * keep) - lr * p
        fired.append(said)
        path.append(weight)
    return path, fired


def mixed_gradients(weight):
    """Gradients across each row of the weight, across the whole only, and along it."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(weight.shape, generator=g)
    unit = weight / weight.norm(dim=1, keepdim=True)
    rows = x - unit * (unit * x).sum(1, keepdim=True)
    whole = x - weight * (weight * x).sum() / weight.square().sum()
    return [rows, whole, x + weight]


def test_adamp_is_its_equation_on_each_branch():
    start = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    said = set()
    for g in mixed_gradients(start):
        weight = nn.Parameter(start.clone())
        optimizer = corank.optim.AdamP([weight], 0.05, weight_decay=0.3)
        weight.grad = g.clone()
        optimizer.step()
        path, fired = literal_adamp(start, [g], 0.05, 0.3)
        said.update(fired)
        torch.testing.assert_close(weight.detach(), path[0], rtol=1e-5, atol=1e-6)
    assert said == {"rows", "whole", "neither"}


def test_adamp_does_not_lengthen_what_is_scale_invariant():
    start = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    target = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    lengths = {}
    for kind in (corank.optim.AdamP, torch.optim.AdamW):
        weight = nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.05, weight_decay=0.0)
        run(optimizer, weight, lambda w: -nn.functional.cosine_similarity(w, target).sum(), 40)
        lengths[kind.__name__] = (weight.norm() / start.norm()).item()
    assert lengths["AdamP"] < 1.01 + 0.5 * (lengths["AdamW"] - 1)


def test_adamp_is_pytorch_optimizers():
    peer = pytest.importorskip("pytorch_optimizer")
    weight, loss = problem((10, 14))
    other, _ = problem((10, 14))
    options = {"lr": 0.01, "weight_decay": 0.1}

    def across(w):  # scale-invariant by rows, then a part that is not
        unit = w / w.norm(dim=1, keepdim=True)
        return loss(unit)

    for f in (loss, across):
        ours = run(corank.optim.AdamP([weight], **options), weight, f, 15)
        theirs = run(peer.AdamP([other], **options), other, f, 15)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_bad_options():
    with pytest.raises(ValueError, match="did you mean 'lion'"):
        corank.optim.CautiousDecay([nn.Parameter(torch.ones(2, 2))], inner="lionn")
    with pytest.raises(ValueError, match="delta must be at least 0"):
        corank.optim.AdamP([nn.Parameter(torch.ones(2, 2))], delta=-1)
