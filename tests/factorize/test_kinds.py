"""Every factorisation at every kind of weight: embeddings, convolutions, Conv1D and experts."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import corank
from corank.errors import SiteError
from corank.layers.convolution import convolve

from .small import PARAMETERS, begin

METHODS = [m for m in corank.methods("train") if "factorization" in m.laws]
every = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(24, 16)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.turned = Conv1D(20, 32)

    def forward(self, index):
        x = self.embed(index).unflatten(-1, (4, 2, 2))
        return self.turned(torch.tanh(self.conv(x)).flatten(1))


@every
def test_it_computes_what_it_does_merged_and_trains(method):
    model, index = Kinds().double(), torch.arange(12)
    targets = ["conv", "turned"] if "nonlinear" in method.laws else "all"
    corank.factorize(model, method.key, targets=targets, **PARAMETERS.get(method.key, {}))
    _, optimizer = begin(model, lr=1e-2)
    losses = []
    for _ in range(6):
        value = (model(index) - 1).square().mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    if "nonlinear" not in method.laws:
        before = model(index)
        corank.merge(model)
        torch.testing.assert_close(model(index), before)
        assert {type(layer) for layer in model.children()} == {nn.Embedding, nn.Conv2d, Conv1D}


def test_chosen_columns_at_an_embedding_and_a_convolution():
    model, index = Kinds().double(), torch.arange(12)
    corank.factorize(model, "lost", targets="all", rank=2, density=0.3, activation=None)
    before = model(index)
    corank.merge(model)
    torch.testing.assert_close(model(index), before)


def test_an_activation_at_a_convolution_whose_factors_are_wider_than_its_kernel():
    model = Kinds().double()
    corank.factorize(model, "lost", targets=["conv"], rank=8)
    low = model.conv.operator.operators[0].operator
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    places = nn.functional.unfold(x, 3, padding=1).mT
    expected = low(places).mT.unflatten(-1, (5, 5))
    torch.testing.assert_close(convolve(low, x, model.conv.geometry), expected)


@pytest.mark.parametrize("key", ["sltrain", "slope", "sst"])
def test_experts(key):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
        max_position_embeddings=16,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    report = corank.factorize(model, key, targets="re:experts", **PARAMETERS.get(key, {}))
    assert {row.role for row in report.sites} == {"expert_gate_up", "expert_down"}
    tokens = torch.arange(8)[None]
    before = model(tokens).logits
    before.sum().backward()
    corank.merge(model)
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)


def test_an_embedding_needs_a_matrix():
    model = Kinds()
    with pytest.raises(SiteError, match=r"embed.*no matrix.*Leave embeddings out"):
        corank.factorize(model, "lost", targets="all", rank=2)
    assert isinstance(model.embed, nn.Embedding)
    assert isinstance(model.conv, nn.Conv2d)
