"""A small model for every adapter: tall, wide and square weights, data, and parameters that fit."""

import torch
from torch import nn

import corank
from corank.adapters import adapted
from corank.models import find_sites
from corank.operators import LowRank


def old_loras(count, rank=2):
    """Trained adapters of the small model: site name -> LowRank."""
    generator = torch.Generator().manual_seed(7)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator) / 4

    shapes = {"0": (36, 16), "2": (20, 36), "4": (20, 20)}
    return [
        {name: LowRank(drawn(out, rank), drawn(rank, into)) for name, (out, into) in shapes.items()}
        for _ in range(count)
    ]


#: Parameters that a method needs to fit weights of 16 to 36 rows and columns.
PARAMETERS: dict[str, dict] = {
    "adalora": {"target_r": 2, "init_r": 4, "tinit": 2, "tfinal": 3, "deltaT": 2},
    "aflora": {"interval": 2},
    "block_lora": {"blocks": 4},
    "bone": {"rank": 4},
    "compacter": {"reduction_factor": 4},
    "corda": {"rank": 8},
    "eigenlorax": {"adapters": old_loras(3), "components": 8, "rank": 3},
    "eva": {"rank": 4},
    "fourierft": {"n_frequency": 24},
    "kore": {"rank": 8},
    "lift": {"rank": 1, "filter_rank": 4, "interval": 4},
    "lora_sb": {"rank": 8},
    "moe_lora": {"rank": 2, "experts": 4, "top_k": 2, "damping": 1e-2, "gate_rate": 1.0},
    "nola": {"bases": 12},
    "nora": {"rank": 10, "inner_rank": 4},
    "periodic_lora": {"rank": 2, "every": 4, "cycles": 2, "momentum": 0.5, "warmup": 2},
    "pmss": {"rank": 8},
    "prilora": {"interval": 3},
    "pst": {"rank": 2, "sparsity": 0.3},
    "randlora": {"rank": 6, "alpha": 12.0},
    "relora": {"rank": 4, "every": 4, "cycles": 3, "prune": 0.5, "warmup": 2},
    "s2ft": {"ratio": 0.2},
    "shears": {"rank": 4, "alpha": 8.0, "space": (4, 2, 1)},
    "smora": {"rank": 8, "top_k": 3, "alpha": 2.0},
    "soka": {"rank": 6, "energy": 0.5},
    "sora": {"threshold": (1e-3, 1e-2)},
    "sqft": {"rank": 4, "alpha": 8.0},
    "svfit": {"rank": 6},
    "tensorpoly": {"rank": 3, "experts": 2},
    "tera": {"rank": 3},
    "vb_lora": {"num_vectors": 6, "vector_length": 4},
    "vectorfit": {"warmup": 2, "interval": 3, "freeze": 2},
    "vera": {"rank": 12},
}


def small_model(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(16, 36), nn.Tanh(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 20)
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return model.to(dtype)


def batches(count=6, rows=32, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, 1, 16)
    return [(torch.randn(rows, 16, generator=generator) * scales).to(dtype) for _ in range(count)]


def loss(model, batch):
    return (model(batch[0] if isinstance(batch, (tuple, list)) else batch) - 1).square().mean()


def adapt(method, model=None, dtype=torch.float64, **options):
    """(model, its report) with an adapter of `method` at every weight."""
    model = small_model(dtype=dtype) if model is None else model
    recipe = method.recipe(PARAMETERS.get(method.key, {}))
    needs = recipe.rewrite.needs | recipe.needs
    given = {"data": batches(dtype=dtype), "loss": loss} if needs else {}
    options = PARAMETERS.get(method.key, {}) | given | options
    return model, corank.adapt(model, method.key, **options)


def operators(model, name="default"):
    """Site name -> the adapter's operator there."""
    return {path: weight.adapter(name) for path, weight in adapted(model).items()}


def leaves(op):
    """The leaves of an operator by their last name; a second "b" is "b_1"."""
    found = {}
    for path, leaf in (*op.named_parameters(), *op.named_buffers()):
        name, number = path.rpartition(".")[2], 0
        key = name
        while key in found:
            number += 1
            key = f"{name}_{number}"
        found[key] = leaf
    return found


def mask_by_hand(model, op, kept):
    """Mask ranks of a product that may have been made without a mask."""
    op.mask = kept if op.mask is None else op.mask & kept
    for weight in adapted(model).values():
        weight.refresh()


def stir(model, scale=0.1, seed=2):
    """Move every leaf that trains, so that nothing is at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.add_((scale * drawn).to(parameter))


def sites_of(model):
    return find_sites(model)
