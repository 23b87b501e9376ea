"""The same methods in PEFT: starts, outputs, gradients and losses on one set of leaves.

Where the two differ by design a test says so: PEFT overwrites the weight with a residual, this
library holds the start beside it; PEFT's EVA is incremental, this library's exact.
"""

import sys
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapted

from .small import leaves, operators

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    from peft.tuners.lora.config import CordaConfig

SHAPES = [(12, 18), (18, 10), (10, 10)]
RANK = 4


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in SHAPES)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def rows(count=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 12, generator=generator) * torch.logspace(0, 1, 12)


def theirs(prepare=None, **options):
    """(PEFT's model, its LoRA layers by our site names)."""
    config = peft.LoraConfig(target_modules=r"layers\.\d", r=RANK, **options)
    model = Layers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if prepare is not None:
            prepare(model, config)
        wrapped = peft.get_peft_model(model, config)
    found = {f"layers.{i}": wrapped.base_model.model.layers[i] for i in range(len(SHAPES))}
    return wrapped, found


def ours(key, **options):
    model = Layers()
    corank.adapt(model, key, **options)
    return model


def factors(layer):
    return layer.lora_B["default"].weight, layer.lora_A["default"].weight


def copy_into(model, layers, b="b_1", a="a_1"):
    """Our trained leaves, moved a little, into PEFT's."""
    generator = torch.Generator().manual_seed(3)
    for path, op in operators(model).items():
        held = leaves(op)
        for name, target in zip((b, a), factors(layers[path]), strict=True):
            drawn = torch.randn(held[name].shape, generator=generator)
            held[name].data.add_(0.1 * drawn)
            target.data.copy_(held[name])


def assert_same(model, wrapped, layers, b="b_1", a="a_1"):
    """Outputs, gradients of the trained factors and merged weights agree."""
    x = rows(seed=5)
    one, two = model(x), wrapped(x)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    one.square().sum().backward()
    two.square().sum().backward()
    for path, op in operators(model).items():
        held = leaves(op)
        for name, target in zip((b, a), factors(layers[path]), strict=True):
            torch.testing.assert_close(held[name].grad, target.grad, rtol=1e-3, atol=1e-3)
        merged = layers[path].base_layer.weight + layers[path].get_delta_weight("default")
        torch.testing.assert_close(op.dense(), merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", ["pissa", "olora"])
def test_starts_from_the_weight(key):
    model = ours(key, rank=RANK)
    wrapped, layers = theirs(init_lora_weights=key, lora_alpha=RANK)
    for path, op in operators(model).items():
        held, (b, a) = leaves(op), factors(layers[path])
        sign = (held["b_1"] * b).sum(0).sign()  # of singular vectors, which is free
        torch.testing.assert_close(held["b_1"], b * sign, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(held["a_1"], a * sign[:, None], rtol=1e-4, atol=1e-4)
        residual = adapted(model)[path].base.dense() - held["b"] @ held["a"]
        torch.testing.assert_close(residual, layers[path].base_layer.weight, rtol=1e-4, atol=1e-4)
    copy_into(model, layers)
    assert_same(model, wrapped, layers)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda(mode, monkeypatch):
    # PEFT takes `dataclass` from attrs, which it does not require.
    monkeypatch.setitem(sys.modules, "attr", SimpleNamespace(dataclass=dataclass))
    from peft.tuners.lora.corda import preprocess_corda

    x = rows(200)

    def prepare(model, config):
        preprocess_corda(model, config, run_model=lambda: model(x))

    model = ours("corda", rank=RANK, mode=mode, data=[x])
    config = CordaConfig(corda_method=mode)
    wrapped, layers = theirs(
        prepare, init_lora_weights="corda", corda_config=config, lora_alpha=RANK
    )
    for path, op in operators(model).items():
        held, (b, a) = leaves(op), factors(layers[path])
        torch.testing.assert_close(held["b_1"] @ held["a_1"], b @ a, rtol=1e-2, atol=1e-3)
        # The scale of the second moment, which each takes in its own way, stands in the factors.
        scale = held["b_1"].norm() / b.norm()
        sign = (held["b_1"] * b).sum(0).sign()
        torch.testing.assert_close(held["b_1"], scale * sign * b, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(held["a_1"], sign[:, None] * a / scale, rtol=1e-2, atol=1e-3)
    copy_into(model, layers)
    assert_same(model, wrapped, layers)


def test_kasa():
    model = ours("kasa", rank=RANK, alpha=8.0, beta=0.3, gamma=0.2)
    config = peft.tuners.lora.KasaConfig(beta=0.3, gamma=0.2)
    wrapped, layers = theirs(kasa_config=config, lora_alpha=8)
    copy_into(model, layers)
    for path, op in operators(model).items():
        layers[path].lora_diag["default"].data.copy_(leaves(op)["gate"])
        truncated = adapted(model)[path].base.dense() - leaves(op)["b"] @ leaves(op)["a"]
        torch.testing.assert_close(layers[path].base_layer.weight, truncated, rtol=1e-4, atol=1e-4)
    penalty = wrapped.base_model._get_kasa_loss()
    torch.testing.assert_close(corank.controller(model).penalty(), penalty)
    assert_merged_and_outputs(model, wrapped, layers)


def assert_merged_and_outputs(model, wrapped, layers):
    x = rows(seed=5)
    one, two = model(x), wrapped(x)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    one.square().sum().backward()
    two.square().sum().backward()
    for path, op in operators(model).items():
        gate = layers[path].lora_diag["default"]
        torch.testing.assert_close(leaves(op)["gate"].grad, gate.grad, rtol=1e-3, atol=1e-3)
        for name, target in zip(("b_1", "a_1"), factors(layers[path]), strict=True):
            torch.testing.assert_close(leaves(op)[name].grad, target.grad, rtol=1e-3, atol=1e-3)
    merged = wrapped.merge_and_unload()
    for path, op in operators(model).items():
        weight = merged.get_submodule(path).weight
        torch.testing.assert_close(op.dense(), weight, rtol=1e-4, atol=1e-4)


def test_eva():
    x = rows(400)
    model = ours("eva", rank=RANK, rho=2.0, data=[x])
    config = peft.tuners.lora.EvaConfig(rho=2.0, use_label_mask=False)
    wrapped, _ = theirs(init_lora_weights="eva", eva_config=config, lora_alpha=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.tuners.lora.initialize_lora_eva_weights(
            wrapped, [x], forward_fn=lambda model, batch: model(batch),
            prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False,
        )  # fmt: skip
    for path, op in operators(model).items():
        layer = wrapped.base_model.model.get_submodule(path)
        ours_a, theirs_a = leaves(op)["a"].detach(), layer.lora_A["default"].weight.detach()
        assert ours_a.shape == theirs_a.shape
        similar = (ours_a * theirs_a).sum(1).abs()
        assert float(similar.min()) > 0.99
        assert layer.scaling["default"] == pytest.approx(16 / RANK)
    found = {path: wrapped.base_model.model.get_submodule(path) for path in operators(model)}
    copy_into(model, found, "b", "a")
    assert_same(model, wrapped, found, "b", "a")


def test_eva_stops_where_the_peer_does():
    torch.manual_seed(0)
    scale = torch.logspace(1, -2, 12)
    data = [torch.randn(48, 12) * scale for _ in range(20)]
    model = Layers()
    report = corank.adapt(model, "eva", rank=RANK, rho=2.0, data=data)
    config = peft.tuners.lora.EvaConfig(rho=2.0, use_label_mask=False, whiten=True)
    wrapped, _ = theirs(init_lora_weights="eva", eva_config=config, lora_alpha=16)
    forwards = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.tuners.lora.initialize_lora_eva_weights(
            wrapped, data, forward_fn=lambda model, x: forwards.append(model(x)),
            prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False,
        )  # fmt: skip
    read = len(forwards) - 1  # one more finds the layers that share an input
    assert report.notes == [f"calibration ended after {read} of 20 batches: no more were needed"]
