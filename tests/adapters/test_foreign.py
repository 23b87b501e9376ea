"""Adapters beside weights that another library quantised, and beside corank's own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import corank
from corank.adapters import adapted
from corank.errors import FormatError
from corank.models import find_sites, install, survey
from corank.operators import Foreign, normal_float, quantise_codebook, quantise_uniform
from tests.verbs.models import tiny_llama, tokens

from .small import stir

X = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16, bias=False))


class Packed4bit(nn.Parameter):
    """As bitsandbytes keeps a weight: bytes in a column, all else in a state beside it."""


class Linear4bit(nn.Linear):
    """A stand-in for bitsandbytes' layer: the same attributes, the same calls, plain torch."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        made = quantise_codebook(linear.weight.detach(), normal_float(), 16)
        self.quant_state = (made,)  # no submodule, as the library's is none
        codes = made.codes.reshape(-1, 1)
        self.weight = Packed4bit(codes, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        state = copy.copy(self.quant_state[0])
        state._buffers = dict(state._buffers, codes=self.weight.data.view(self.out_features, -1))
        with torch.no_grad():  # a kernel without a backward pass
            return F.linear(x, state.dense().to(x.dtype), self.bias)


class PackedBuffers(nn.Module):
    """As GPTQ layers are: no nn.Linear, buffers only."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        made = quantise_uniform(linear.weight.detach(), 4, 8)
        self.register_buffer("qweight", made.codes)
        self.register_buffer("scales", made.scale.detach())
        self.bias = linear.bias

    def forward(self, x):
        codes = torch.stack([self.qweight & 15, self.qweight >> 4], -1).flatten(1).float() - 8
        weight = (codes.unflatten(1, (-1, 8)) * self.scales[:, :, None]).flatten(1)
        y = x @ weight.mT
        return y if self.bias is None else y + self.bias


def _torchao(config):
    quantization = pytest.importorskip("torchao.quantization")

    def make():
        model = plain()
        quantization.quantize_(model, getattr(quantization, config)())
        return model

    return make


def _replaced(kind):
    def make():
        model = plain()
        for number in (0, 2):
            model[number] = kind(model[number])
        return model

    return make


MODELS = {
    "torchao int8": "Int8WeightOnlyConfig",
    "torchao intx": "IntxWeightOnlyConfig",
    "nf4 stand-in": _replaced(Linear4bit),
    "gptq stand-in": _replaced(PackedBuffers),
}


def build(name):
    make = MODELS[name]
    return (_torchao(make) if isinstance(make, str) else make)()


every = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries


@every
def test_an_adapter_leaves_the_function_and_the_module_as_they_were(name):
    model = build(name)
    before, modules = model(X).detach(), list(model)
    report = corank.adapt(model, "modulora", rank=2)
    assert report.totals["trainable"] == 2 * (16 + 32) * 2
    torch.testing.assert_close(model(X), before)
    with torch.no_grad():
        torch.testing.assert_close(model(X), before)
    corank.adapters.delete(model, "default")
    assert [type(m) for m in model] == [type(m) for m in modules]
    assert model[0].bias is modules[0].bias
    assert torch.equal(model(X), before)


@every
def test_gradients_are_those_beside_the_dequantised_weight(name):
    model = build(name)
    corank.adapt(model, "modulora", rank=2, alpha=3.0)
    torch.manual_seed(1)
    for op in (weight.operators[0] for weight in adapted(model).values()):
        for leaf in op.parameters():
            leaf.data.normal_()
    twin = plain()
    for number in (0, 2):
        twin[number].weight.data = model[number].operator.base.dense().clone()
    corank.adapt(twin, "lora", rank=2, alpha=3.0)
    for ours, theirs in zip(adapted(model).values(), adapted(twin).values(), strict=True):
        theirs.operators[0].load_state_dict(ours.operators[0].state_dict())
    x = X.clone().requires_grad_()
    mine, reference = model(x), twin(x)
    torch.testing.assert_close(mine, reference)
    trained = [[p for p in m.parameters() if p.requires_grad] for m in (model, twin)]
    assert len(trained[0]) == 4
    weight = torch.randn(mine.shape)
    one = torch.autograd.grad((mine * weight).sum(), [x, *trained[0]])
    two = torch.autograd.grad((reference * weight).sum(), [x, *trained[1]])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


@every
def test_merging_gives_plain_layers(name):
    model = build(name)
    corank.adapt(model, "modulora", rank=2)
    for weight in adapted(model).values():
        weight.operators[0].operators[1].operator.b.data.normal_()
    with torch.no_grad():
        before = model(X)
        corank.merge(model)
        assert [type(m) for m in model] == [nn.Linear, nn.Tanh, nn.Linear]
        torch.testing.assert_close(model(X), before)


@every
def test_a_trained_adapter_comes_back_onto_the_same_quantised_base(name, tmp_path):
    model = build(name)
    corank.adapt(model, "lora", rank=2)
    control = corank.controller(model)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()
    corank.save_adapter(model, tmp_path / "a")
    again = build(name)
    assert not corank.load_adapter(again, tmp_path / "a").notes
    assert torch.equal(again(X), model(X))


def test_a_transformers_model_that_torchao_quantised_takes_adapters(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")

    def make():
        model = tiny_llama()
        quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())
        return model

    model = make()
    corank.adapt(model, "lora", rank=2)
    stir(model)
    corank.save_adapter(model, tmp_path / "a")
    again = make()
    corank.load_adapter(again, tmp_path / "a")
    ids = tokens(1)[0]["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(FormatError, match=r"another library's format: .*save_adapter"):
        corank.save(model, tmp_path / "m")


@every
def test_compressing_still_refuses(name):
    model = build(name)
    assert survey(model)[0] == []
    assert [r.name for r in survey(model)[1]] == ["0", "2"]
    with pytest.raises(ValueError, match=r"no targeted weight can be rewritten; 0: .*"):
        corank.compress(model, "svd", keep=0.5)


def test_a_module_with_a_forward_of_its_own_is_no_quantised_one():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert survey(nn.Sequential(Doubled(4, 4)), foreign=True)[0] == []


def test_the_matrix_is_what_the_module_computes():
    linear = plain()[0]
    packed = PackedBuffers(linear)
    op = Foreign(packed, (32, 16))
    expected = quantise_uniform(linear.weight.detach(), 4, 8).dense()
    torch.testing.assert_close(op.dense(), expected)
    torch.testing.assert_close(op(X), X @ expected.mT)
    assert packed.bias is linear.bias


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "modulora"])
def test_adapters_stand_beside_weights_that_corank_quantised(method):
    model = plain()
    for site in find_sites(model):
        install(model, site, quantise_uniform(model.get_submodule(site.name).weight, 4, 8))
    before = model(X).detach()
    corank.adapt(model, method, rank=2)
    torch.testing.assert_close(model(X), before)
    loss = (model(X) - 1).square().mean()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(bool(p.grad.any()) for p in trained)
    corank.adapters.delete(model, "default")
    assert torch.equal(model(X), before)
    assert type(model[0].operator).__name__ == "Quantised"
