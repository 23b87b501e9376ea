"""Steps during the backward pass."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.optim import step_in_backward

from .small import batch, keys, make, model, train


@pytest.mark.parametrize("key", keys())
def test_the_weights_are_those_of_usual_steps(key):
    usual, early = model(), model()
    optimizers = make(key, usual, weight_decay=0.1), make(key, early, weight_decay=0.1)
    undo = step_in_backward(optimizers[1])
    train(usual, optimizers[0], range(8))
    train(early, optimizers[1], range(8))
    undo()
    assert all(p.grad is None for p in early.parameters())
    for net, optimizer in zip((usual, early), optimizers, strict=True):
        train(net, optimizer, range(8, 10))
    for p, q in zip(usual.parameters(), early.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_gradients_are_freed_at_once():
    net = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(8)])
    held = []

    def count(_):
        held.append(sum(p.grad.nbytes for p in net.parameters() if p.grad is not None))

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(count)
    net(torch.randn(4, 16)).square().sum().backward()
    assert max(held) == 8 * 16 * 16 * 4
    for p in net.parameters():
        p.grad = None
    held.clear()
    optimizer = make("galore", net)
    step_in_backward(optimizer)
    net(torch.randn(4, 16)).square().sum().backward()
    optimizer.step()
    assert max(held) == 16 * 16 * 4


def test_accumulation_is_refused_and_a_bad_gradient_skips_its_parameter():
    net = model()
    optimizer = make("galore", net)
    step_in_backward(optimizer)
    x, y = batch(0)
    nn.functional.mse_loss(net(x), y).backward()
    with pytest.raises(RuntimeError, match="cannot be accumulated"):
        nn.functional.mse_loss(net(x), y).backward()
    optimizer.zero_grad()
    optimizer.step()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.warns(UserWarning, match="not finite"):
        (net(x).sum() + float("inf") * net[3].bias.sum()).backward()
    same = [torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True)]
    assert same == [False] * 5 + [True]


def test_resume_is_exact_and_schedulers_go_on():
    def fresh():
        net = model()
        optimizer = corank.optim.GaLore(net, lr=0.02, rank=4, every=5)
        step_in_backward(optimizer)
        return net, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    whole, first, second = fresh(), fresh(), fresh()
    train(whole[0], whole[1], range(14), whole[2])
    train(first[0], first[1], range(6), first[2])
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    train(second[0], second[1], range(6, 14), second[2])
    for p, q in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(p, q)
