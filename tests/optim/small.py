"""Small problems that every optimiser is tried on."""

import inspect

import torch
from torch import nn

import corank
from corank.optim import LowRankOptimizer
from corank.optim.factored import nearly_square

#: Every optimiser class by its method's key; those that look at layers want a model, not weights.
EVERY = {
    kind.key: kind
    for _, kind in inspect.getmembers(corank.optim, inspect.isclass)
    if issubclass(kind, LowRankOptimizer) and kind is not LowRankOptimizer
}
WATCHING = {key: kind for key, kind in EVERY.items() if kind.transform().watch is not None}
CLASSES = {key: kind for key, kind in EVERY.items() if key not in WATCHING}

#: Options under which 30 steps on tiny matrices see several refreshes; the rest are the defaults.
OPTIONS = {
    "mfac": {"window": 8, "lr": 0.02, "damping": 0.01},
    "apollo": {"rank": 4, "every": 5},
    "fira": {"rank": 4, "every": 5},
    "frugal": {"density": 0.25, "every": 5, "rest_scale": 0.1},
    "coap": {"rank": 4, "every": 3, "anew": 2},
    "dct_adamw": {"rank": 4},
    "flora_optim": {"rank": 6, "every": 12, "lr": 0.003},
    "galore": {"rank": 4, "every": 5},
    "galore_plus": {"rank": 4, "every": 5, "residual": 0.1},
    "gradnormlorp": {"rank": 4, "every": 5},
    "grass": {"rank": 4, "every": 5},
    "online_subspace_descent": {"rank": 4, "rate": 0.5},
    "qgalore": {"rank": 4, "every": 5},
    "subset_norm_momentum": {"rank": 4, "every": 5, "lr": 0.1},
}

#: State in numbers of four bytes of a matrix (a, b), a <= b, at rank r, by the formula.
NUMBERS = {
    "adamp": lambda a, b, r: 2 * a * b,
    "cautious_wd": lambda a, b, r: 2 * a * b,
    "mfac": lambda a, b, r: 8 * a * b + 64,
    "smmf": lambda a, b, r: 2 * sum(nearly_square(a * b)) + -(-a * b // 8) / 4,
    "apollo": lambda a, b, r: 2 * r * b + 1,
    "fira": lambda a, b, r: a * r + 2 * r * b + 1,
    "frugal": lambda a, b, r: a * round(a / 4) + 2 * round(a / 4) * b,
    "coap": lambda a, b, r: a * r + 2 * r * b,
    "dct_adamw": lambda a, b, r: 2 * r * b + r,
    "flora_optim": lambda a, b, r: 6 * b + a + b,
    "galore": lambda a, b, r: a * r + 2 * r * b,
    "galore_plus": lambda a, b, r: a * r + 2 * r * b + 3 * round(a * b / 10),
    "gradnormlorp": lambda a, b, r: a * r + 2 * r * b,  # and two numbers a row of the parameter
    "grass": lambda a, b, r: 2 * r * b + r,
    "online_subspace_descent": lambda a, b, r: 3 * a * r + 2 * r * b,
    "qgalore": lambda a, b, r: -(-a * r // 256) * (256 / 8 + 1) + 2 * r * b + 5,
    "subset_norm_momentum": lambda a, b, r: a * r + r * b + a,
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
