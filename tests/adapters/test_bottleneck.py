"""Compacter: the module's values, what it trains, where it is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import corank
from corank.adapters import adapted, adapters
from corank.errors import SiteError
from corank.operators import Bottleneck, Dense
from tests.verbs.models import tiny_bert, tiny_llama, tokens

from .small import operators, stir

ENDS = ["o_proj", "down_proj"]


def by_hand(y, op):
    """The module behind outputs y, with every Kronecker product written down."""

    def phm(layer):
        return sum(torch.kron(r, s @ t) for r, s, t in zip(layer.p, layer.q, layer.a, strict=True))

    inner = F.gelu(y @ phm(op.down).T + op.inner, approximate="tanh")
    return y + inner @ phm(op.up).T + op.outer


def compacter(model, **options):
    corank.adapt(model, "compacter", **{"targets": ENDS, "reduction_factor": 4} | options)
    stir(model)
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_the_module_is_the_papers(trained):
    model = compacter(tiny_llama())
    layer = model.model.layers[0].mlp.down_proj
    op = operators(model)["model.layers.0.mlp.down_proj"].operators[0]
    x = torch.randn(3, layer.in_features)
    if trained:  # far from the start, where all is nearly linear
        for leaf in op.parameters():
            leaf.data = torch.randn_like(leaf)
    expected = by_hand(x @ adapted(model)["model.layers.0.mlp.down_proj"].base.dense().T, op)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_a_layers_bias_comes_after_and_the_modules_can_make_up_for_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    bias = model[0].bias.detach().clone()
    corank.adapt(model, "compacter", reduction_factor=2)
    op = operators(model)["0"].operators[0]
    for leaf in op.parameters():
        leaf.data = torch.randn_like(leaf)
    x, weight = torch.randn(3, 8), adapted(model)["0"].base.dense()
    torch.testing.assert_close(model(x), by_hand(x @ weight.T, op) + bias)
    expected = by_hand(x @ weight.T + bias, op)
    op.inner.data += op.down(bias).detach()
    torch.testing.assert_close(model(x), expected)


def test_it_starts_near_the_model():
    model = tiny_llama()
    ids = tokens(1)[0]["input_ids"]
    before = model(ids).logits
    corank.adapt(model, "compacter", targets=ENDS)
    distance = (model(ids).logits - before).abs().max()
    assert 0 < distance < 1e-3


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
def test_the_norms_train_too(make):
    norms = {n for n, m in make().named_modules() if type(m).__name__.endswith("Norm")}
    for wanted in (True, False):
        model = make()
        corank.adapt(model, "compacter", layer_norms=wanted)
        found = {n.rpartition(".")[0] for n in adapters(model)["default"].also}
        assert found == (norms if wanted else set())


def test_it_is_saved_and_refused_where_it_has_no_form(tmp_path):
    model = compacter(tiny_llama())
    ids = tokens(1)[0]["input_ids"]
    corank.save_adapter(model, tmp_path / "a")
    again = tiny_llama()
    corank.load_adapter(again, tmp_path / "a")
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(SiteError, match="not one matrix"):
        corank.adapters.merge_adapters(model)
    with pytest.raises(ValueError, match="not one matrix"):
        operators(model)["model.layers.0.mlp.down_proj"].dense()
    with pytest.raises(SiteError, match="not one matrix"):
        corank.save_adapter(model, tmp_path / "b", format="peft")
    with pytest.raises(SiteError, match="no table"):
        corank.adapt(tiny_llama(), "compacter", targets=["embed_tokens"])


def test_the_operator_names_what_does_not_fit():
    with pytest.raises(ValueError, match="must be the shape of"):
        Bottleneck(Dense(torch.ones(4, 2)), Dense(torch.ones(3, 4)), torch.ones(3), torch.ones(4))
