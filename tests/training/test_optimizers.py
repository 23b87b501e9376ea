"""Any optimiser is built from its key over a model: what decays, and what is refused."""

import pytest
import torch

from corank.training import build_optimizer, optimizers

from ..verbs.models import tiny_llama


@pytest.mark.parametrize("key", sorted({*optimizers()} - {"adamw_8bit", "shampoo"}))
def test_every_parameter_is_in_one_group_and_vectors_do_not_decay(key):
    model = tiny_llama()
    optimizer = build_optimizer(model, key, lr=1e-3, weight_decay=0.1)
    seen = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, seen)) == sorted(map(id, model.parameters()))
    for group in optimizer.param_groups:
        decay = {p.ndim > 1: group["weight_decay"] for p in group["params"]}
        assert decay in ({True: 0.1}, {False: 0.0})


def test_frozen_parameters_are_left_out():
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    for key in ("adamw", "galore"):
        optimizer = build_optimizer(model, key)
        seen = {p for group in optimizer.param_groups for p in group["params"]}
        assert model.model.embed_tokens.weight not in seen


@pytest.mark.parametrize(
    ("key", "wired"), [("adamw_8bit", "torchao"), ("shampoo", "pytorch_optimizer")]
)
def test_wired_optimisers_take_a_model(key, wired):
    pytest.importorskip(wired)
    optimizer = build_optimizer(tiny_llama(), key, weight_decay=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert any(p.ndim == 1 for g in optimizer.param_groups for p in g["params"])


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="galore"):
        build_optimizer(tiny_llama(), "galor")
    with pytest.raises(ValueError, match="rank"):
        build_optimizer(tiny_llama(), "galore", options={"rnk": 3})
