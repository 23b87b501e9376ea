"""Rates and decays over widths, and the probe of what they are to keep."""

import pytest
import torch
from torch import nn

import corank

from ..verbs.models import tiny_llama


def test_groups_carry_the_rule():
    model = tiny_llama()
    made = corank.optim.wd_scaling(model, 256, 64, lr=1e-2, weight_decay=0.1, vector_lr=3e-3)
    matrices, others = made
    assert matrices["lr"] == pytest.approx(1e-2 / 4)
    assert matrices["weight_decay"] == pytest.approx(0.1 * 2)
    assert (others["lr"], others["weight_decay"]) == (3e-3, 0.0)
    inside = {id(p) for p in matrices["params"]}
    assert id(model.model.layers[0].self_attn.q_proj.weight) in inside
    assert id(model.model.embed_tokens.weight) not in inside
    assert sum(len(g["params"]) for g in made) == len(list(model.parameters()))
    torch.optim.AdamW(made)
    same = corank.optim.wd_scaling(model, 64, 64, lr=1e-2, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in same] == [(1e-2, 0.1), (1e-2, 0.0)]


def test_top_singular_values_are_the_spectrums():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)).to(torch.bfloat16)
    found = corank.optim.top_singular_values(model)
    for name in ("0", "1"):
        weight = model.get_submodule(name).weight.float()
        assert found[name] == pytest.approx(torch.linalg.svdvals(weight)[0].item(), rel=1e-5)


def steady(width, scaled):
    """The top singular value over that of the rule, sqrt(lr / decay) d^0.75, in a steady state."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
    holder = nn.ModuleDict({"block": net})
    groups = corank.optim.wd_scaling(holder, width, 16, lr=0.02, weight_decay=1.0)
    if not scaled:
        groups = [g | {"weight_decay": 1.0} if g["project"] else g for g in groups]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for _ in range(250):
        x = torch.randn(32, width)
        y = net(x)
        target = torch.randn(32, width)
        loss = nn.functional.mse_loss(nn.functional.normalize(y, dim=1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return corank.optim.top_singular_values(holder)["block.1"]


def test_the_rule_keeps_the_top_singular_value_over_widths():
    narrow = steady(16, True)
    assert steady(64, True) == pytest.approx(narrow, rel=0.15)
    assert steady(64, False) > 1.2 * narrow


def test_bad_widths():
    with pytest.raises(ValueError, match="widths must be at least 1"):
        corank.optim.wd_scaling(nn.Linear(2, 2), 0, 2, lr=1.0, weight_decay=0.0)
