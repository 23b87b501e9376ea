from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from corank.errors import SiteError
from corank.layers import Embedding, Experts, Linear
from corank.models import (
    blocks,
    densify,
    find_sites,
    install,
    is_rewritten,
    read,
    read_bias,
    stacks,
)
from corank.operators import Dense, LowRank

from .families import call, full_rank, half_rank, make


def test_reading_shares_memory_and_records_what_trains() -> None:
    model = make("mlp")
    first, *_ = sites = find_sites(model)
    model.net[0].weight.requires_grad_(False)
    op = read(model, first)
    assert isinstance(op, Dense)
    assert op.weight.data_ptr() == model.net[0].weight.data_ptr()
    assert [read(model, site).weight.requires_grad for site in sites] == [False, True, True, True]


def test_installing_over_an_operator_composes() -> None:
    model = make("mlp")
    (site, *_) = find_sites(model)
    low_rank = half_rank(read(model, site))
    install(model, site, low_rank)
    assert read(model, site) is low_rank
    bias = read_bias(model, site)
    install(model, site, 2.0 * read(model, site))
    assert read(model, site).operator is low_rank
    assert read_bias(model, site) is bias
    x = torch.randn(3, 12)
    torch.testing.assert_close(model.net[0](x), x @ (2 * low_rank.dense()).T + bias)
    densify(model, site)
    assert type(model.net[0]) is nn.Linear


def test_a_new_bias_replaces_the_old_or_starts_one() -> None:
    model = make("mlp")
    first, bare, *_ = find_sites(model)
    assert (first.bias, bare.bias) == (True, False)
    for site, trains in ((first, True), (bare, False)):
        op, bias = full_rank(read(model, site)), torch.randn(site.shape[0])
        install(model, site, op, bias)
        torch.testing.assert_close(read_bias(model, site).detach(), bias)
        assert read_bias(model, site).requires_grad is trains
        densify(model, site)
        torch.testing.assert_close(model.get_submodule(site.name).bias.detach(), bias)


def test_the_bias_of_an_embedding_goes_into_every_row() -> None:
    model = nn.Sequential(nn.Embedding(7, 4))
    (site,) = find_sites(model, "all")
    op, bias, ids = half_rank(read(model, site)), torch.randn(4), torch.arange(7)
    install(model, site, op, bias)
    torch.testing.assert_close(model(ids), op.dense() + bias)
    densify(model, site)
    torch.testing.assert_close(model(ids), op.dense() + bias)


def test_shapes_must_fit() -> None:
    model = make("mlp")
    (site, *_) = find_sites(model)
    with pytest.raises(SiteError, match=r"net.0 .*shape \(12, 24\) does not fit"):
        install(model, site, Dense(torch.zeros(12, 24)))
    with pytest.raises(ValueError, match=r"Linear.bias must be .*\(24,\)"):
        install(model, site, Dense(torch.zeros(24, 12)), torch.zeros(3))
    assert not is_rewritten(model, site)


def test_experts_are_rewritten_one_by_one() -> None:
    model = make("mixtral")
    sites = find_sites(model, "mlp")
    expected = call(model, "mixtral")
    third = sites[2]
    install(model, third, full_rank(read(model, third)))
    assert [is_rewritten(model, site) for site in sites] == [site is third for site in sites]
    assert isinstance(model.get_submodule(third.path), Experts)
    torch.testing.assert_close(call(model, "mixtral"), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(SiteError, match="can be given no bias"):
        install(model, third, read(model, third), torch.zeros(third.shape[0]))


def test_hooks_mode_and_device_placement_survive() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = make("mlp").train()
    seen: list[str] = []
    handle = model.fc1.register_forward_hook(lambda *_: seen.append("hook"))
    model.fc2.eval()
    add_hook_to_module(model.fc2, AlignDevicesHook("cpu"))
    for site in find_sites(model):
        install(model, site, full_rank(read(model, site)))
    assert (model.fc1.training, model.fc2.training) == (True, False)
    assert isinstance(model.fc2._hf_hook, AlignDevicesHook)
    assert type(model.fc2) is Linear
    call(model, "mlp")
    assert seen == ["hook"]
    handle.remove()
    call(model, "mlp")
    assert seen == ["hook"]
    for site in find_sites(model):
        densify(model, site)
    assert isinstance(model.fc2._hf_hook, AlignDevicesHook)
    assert type(model.fc2) is nn.Linear


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_runs_dispatched_over_devices_and_disk(family: str, tmp_path: Path) -> None:
    from accelerate import dispatch_model

    model = make(family)
    for site in find_sites(model):
        install(model, site, half_rank(read(model, site)))
    expected = call(model, family)
    devices: dict[str, Any] = {name: "cpu" for name, _ in model.named_children()}
    inner = next(iter(devices))
    devices |= {f"{inner}.{name}": "cpu" for name, _ in getattr(model, inner).named_children()}
    del devices[inner]
    devices |= {name: "disk" for name, _ in blocks(model)}
    devices.pop(stacks(model)[0].name)
    dispatched = dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path)
    assert any(p.is_meta for p in dispatched.parameters())
    torch.testing.assert_close(call_on(dispatched, family), expected)


def call_on(model: nn.Module, family: str) -> torch.Tensor:
    from .families import FAMILIES

    return model(**FAMILIES[family].inputs()).logits


def test_transformers_initialisation_leaves_a_layer_alone() -> None:
    for family in ("gpt2", "t5", "mamba2", "clip", "mixtral"):
        model = make(family)
        for site in find_sites(model, "all"):
            op = read(model, site)
            install(model, site, Dense(op.dense().clone()) if site.layer else half_rank(op))
        state = {k: v.clone() for k, v in model.state_dict().items() if "operator" in k}
        for module in model.modules():
            if isinstance(module, (Linear, Embedding, Experts)):
                model._initialize_weights(module)
        for name, tensor in model.state_dict().items():
            if name in state:
                torch.testing.assert_close(tensor, state[name], atol=0, rtol=0)


def test_a_frozen_model_stays_frozen() -> None:
    model = make("llama").requires_grad_(False)
    for site in find_sites(model):
        install(model, site, half_rank(read(model, site)))
    assert not any(p.requires_grad for p in model.parameters())
    for site in find_sites(model):
        densify(model, site)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_rank_of_an_installed_operator_is_seen() -> None:
    model = make("llama")
    (site, *_) = find_sites(model, ["k_proj"])
    install(model, site, half_rank(read(model, site)))
    op = read(model, site)
    assert isinstance(op, LowRank)
    assert op.rank == 8
