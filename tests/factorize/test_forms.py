"""Forms besides the default one, and the laws for them."""

import pytest
import torch

import corank
from corank.adapters import factorized
from corank.errors import SiteError
from corank.operators import Activated, Dense, LowRank, Product, build, describe, is_linear

from ..adapters.small import leaves, small_model, stir
from .small import PARAMETERS, batches, begin, factorize, operators, train

FORMS = [
    ("lost", {"activation": None}),
    ("slope", {"n": 1, "m": 2}),
    ("sparse_ift", {"form": "doped"}),
    ("sparse_ift", {"form": "parallel", "activation": "tanh"}),
    ("sparse_ift", {"form": "wide", "sparsity": 0.5}),
    ("spectral_init", {"decay": 0.0}),
]
every = pytest.mark.parametrize(("key", "form"), FORMS, ids=lambda part: str(part))
X = batches(1)[0]


@every
def test_counts_values_skeletons_and_training(key, form):
    method = corank.registry.find_method(key)
    model, report = factorize(method, **form)
    (held,) = factorized(model).values()
    assert report.totals["trainable"] == held.recipe.count(list(held.sites.values()))
    assert report.totals["numel_after"] == report.totals["trainable"]
    _, optimizer = begin(model)
    losses = train(model, optimizer, range(24))
    assert sum(losses[-6:]) < sum(losses[:6])
    given = PARAMETERS.get(key, {}) | form
    for name, op in operators(model).items():
        again = build(describe(op), "cpu")
        again.load_state_dict(op.state_dict())
        x = torch.randn(3, op.shape[1], dtype=torch.float64)
        torch.testing.assert_close(again(x), op(x))
        if is_linear(op):
            torch.testing.assert_close(op(x), x @ op.dense().mT)
            if method.equation is not None:
                w = small_model().get_parameter(f"{name}.weight")
                torch.testing.assert_close(op.dense(), method.equation(w, leaves(op), **given))


@pytest.mark.parametrize(
    ("key", "form"),
    [("lost", {}), ("sparse_ift", {"form": "parallel"})],
    ids=lambda part: str(part),
)
def test_what_is_no_matrix_is_saved_and_not_merged(key, form, tmp_path):
    model, _ = factorize(corank.registry.find_method(key), **form)
    stir(model)
    before = model(X)
    with pytest.raises(SiteError, match="not one matrix"):
        corank.merge(model)
    assert torch.equal(model(X), before)
    corank.save(model, tmp_path / "model")
    assert torch.equal(corank.load(tmp_path / "model", small_model)(X), before)
    op = model[0].operator
    with pytest.raises(ValueError, match="not those of one matrix"):
        op.dense()


@pytest.mark.parametrize(
    ("key", "params", "told"),
    [("lost", {"gamma": 1.0}, "gamma"), ("lost", {"density": 0.0}, "density"),
     ("lost", {"activation": "sine"}, "relu"), ("lorae", {"penalty": 0.0}, "penalty"),
     ("slope", {"n": 4}, "n=4"), ("slope", {"m": 8}, "does not fit its rows and columns"),
     ("slope", {"share": 0.0}, "share"), ("sparse_ift", {"sparsity": 1.0}, "sparsity"),
     ("sparse_ift", {"form": "narrow"}, "narrow"), ("spectral_init", {"decay": -1.0}, "decay"),
     ("trp", {"energy": 0.0}, "energy"), ("sst", {"every": 0}, "every"),
     ("sst", {"rank": 16}, "none of its 16 triples")],
)  # fmt: skip
def test_bad_parameters_are_named_and_the_model_stays(key, params, told):
    model = small_model()
    with pytest.raises(ValueError, match=told):
        factorize(corank.registry.find_method(key), model, **params)
    assert torch.equal(model(X), small_model()(X))


def test_a_product_around_an_activation_has_no_matrix():
    a, b = Dense(torch.randn(5, 4)), Dense(torch.randn(4, 5))
    for op in (Product(Activated(a, "relu"), b), Product(b, Activated(a, "relu"))):
        assert not is_linear(op)
        with pytest.raises(ValueError, match="not those of one matrix"):
            op.dense()


def test_a_factorised_model_has_the_ranks_that_were_asked_for():
    model, report = factorize(corank.registry.find_method("spectral_init"))
    assert [row.rank for row in report.sites] == [4, 4, 4]
    assert all(isinstance(op, LowRank) for op in operators(model).values())
