"""Small problems that every optimiser is tried on."""

import inspect

import torch
from torch import nn

import corank
from corank.optim import LowRankOptimizer

#: Every optimiser class by its method's key.
CLASSES = {
    kind.key: kind
    for _, kind in inspect.getmembers(corank.optim, inspect.isclass)
    if issubclass(kind, LowRankOptimizer) and kind is not LowRankOptimizer
}

#: Options under which 30 steps on tiny matrices see several refreshes; the rest are the defaults.
OPTIONS = {
    "apollo": {"rank": 4, "every": 5},
    "fira": {"rank": 4, "every": 5},
    "frugal": {"density": 0.25, "every": 5, "rest_scale": 0.1},
    "galore": {"rank": 4, "every": 5},
}

#: State in numbers of a matrix (a, b), a <= b, at rank 4, by the paper's formula; indices count 1.
NUMBERS = {
    "apollo": lambda a, b, r: 2 * r * b + 1,
    "fira": lambda a, b, r: a * r + 2 * r * b + 1,
    "frugal": lambda a, b, r: a * round(a / 4) + 2 * round(a / 4) * b,
    "galore": lambda a, b, r: a * r + 2 * r * b,
}

SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (16, 16)}


def keys():
    return sorted(CLASSES)


def make(key, params, **options):
    return CLASSES[key](params, **({"lr": 0.01} | OPTIONS.get(key, {}) | options))


def problem(shape, seed=0):
    """A weight (m, n) and the loss of fitting it to noisy targets of a hidden one."""
    g = torch.Generator().manual_seed(seed)
    m, n = shape
    x = torch.randn(64, n, generator=g)
    hidden = torch.randn(m, 3, generator=g) @ torch.randn(3, n, generator=g) / n**0.5
    y = x @ hidden.T + 0.1 * torch.randn(64, m, generator=g)
    weight = nn.Parameter(0.1 * torch.randn(m, n, generator=g))
    return weight, lambda w: (x.to(w.dtype) @ w.T - y.to(w.dtype)).square().mean()


def run(optimizer, weight, loss, steps):
    """The weights after each step."""
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(weight).backward()
        optimizer.step()
        path.append(weight.detach().clone())
    return path


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 8))


def batch(step):
    g = torch.Generator().manual_seed(step)
    x = torch.randn(16, 12, generator=g)
    return x, x[:, :8].sin()


def train(net, optimizer, steps, scheduler=None):
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in net.parameters()]
