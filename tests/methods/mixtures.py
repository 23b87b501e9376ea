"""A small mixture of experts that has learned something, and text for it."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import nn

import corank
from corank.models import find_sites, read
from corank.rewrites import Unit


def text(count: int = 4, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Rows that count on by a step of their own, so that the next token can be told."""
    g = torch.Generator().manual_seed(seed)
    starts, steps = (torch.randint(1, high, (count, 8, 1), generator=g) for high in (64, 6))
    ids = (starts + steps * torch.arange(12)) % 64
    return [{"input_ids": row} for row in ids]


def loss(model: nn.Module, seed: int = 9) -> float:
    with torch.no_grad():
        return sum(float(model(**b, labels=b["input_ids"]).loss) for b in text(seed=seed)) / 4


@cache
def _trained() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=6,
            num_experts_per_tok=2,
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in text(count=30):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def mixture() -> nn.Module:
    """A Mixtral of two layers with six experts each, trained for thirty steps."""
    return copy.deepcopy(_trained())


def experts(model, layer=0, projection="gate_up_proj"):
    sites = find_sites(model, "mlp")
    return [s for s in sites if s.kind == "expert" and s.layer == layer and projection in s.name]


def stored(model):
    return sum(
        t.numel() * t.element_size() for t in {id(t): t for t in model.parameters()}.values()
    )


def unit_of(model, **where):
    sites = experts(model, **where)
    return Unit(sites, [read(model, site) for site in sites])


def saved_again(model, folder):
    corank.save(model, folder)
    return type(model).from_pretrained(folder)
