"""Small trained cores: starts, counts, coincidences."""

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapted
from corank.errors import DataError

from .small import batches, leaves, loss, operators, small_model, stir

X = batches(1)[0]


def adapt(key, model=None, **params):
    model = small_model() if model is None else model
    return model, corank.adapt(model, key, **params)


def best(w, rank):
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def test_lora_xs_frozen_factors_are_the_best_approximation():
    model, report = adapt("lora_xs", rank=5)
    assert report.totals["trainable"] == 3 * 25
    for path, op in operators(model).items():
        held, w = leaves(op), adapted(model)[path].base.dense()
        torch.testing.assert_close(held["b"] @ held["weight"], best(w, 5))
        torch.testing.assert_close(held["b"].mT @ held["b"], torch.eye(5, dtype=torch.float64))
        assert 1e-6 < float(held["a"].detach().std()) < 1e-4
    assert not torch.equal(model(X), small_model()(X))
    torch.testing.assert_close(model(X), small_model()(X), rtol=1e-2, atol=1e-3)


def test_a_core_without_noise_starts_at_the_weight():
    for key in ("lora_xs", "edora"):
        torch.testing.assert_close(adapt(key, rank=5, std=0.0)[0](X), small_model()(X))


def test_lora_xs_with_a_diagonal_core_is_svfit():
    xs, svfit = adapt("lora_xs", rank=5, alpha=5.0, std=0.0)[0], adapt("svfit", rank=5)[0]
    for path, op in operators(xs).items():
        s = torch.linalg.svdvals(adapted(xs)[path].base.dense())[:5]
        with torch.no_grad():
            leaves(op)["a"].copy_(torch.diag(torch.linspace(-1, 1, 5) / s))
            leaves(operators(svfit)[path])["gate"].copy_(torch.linspace(-1, 1, 5))
        torch.testing.assert_close(op.dense(), operators(svfit)[path].dense())


def test_edora_is_lora_xs_with_lengths_of_rows():
    model, report = adapt("edora", rank=5)
    assert report.totals["trainable"] == 3 * 25 + 36 + 20 + 20
    stir(model)
    for path, op in operators(model).items():
        held, w = leaves(op), adapted(model)[path].base.dense()
        direction = w + 16 / 5 * held["b"] @ held["a"] @ held["weight"]
        rows = direction / direction.norm(dim=1, keepdim=True)
        torch.testing.assert_close(op.dense(), held["m"][:, None] * rows)


def gradient(model, data):
    for layer in model:
        layer.requires_grad_(True)
    for batch in data:
        (loss(model, batch) / len(data)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.ndim == 2}


def test_lora_sb_starts_at_the_best_approximation_of_adams_first_step():
    expected = gradient(small_model(), batches(3))
    model, _ = adapt("lora_sb", rank=6, learning_rate=0.01, data=batches(3), loss=loss)
    for path, op in operators(model).items():
        w, held = adapted(model)[path].base.dense(), leaves(op)
        step = -0.01 * expected[f"{path}.weight"].sign()
        torch.testing.assert_close(op.dense() - w, best(step, 6))
        torch.testing.assert_close(held["b"].mT @ held["b"], torch.eye(6, dtype=torch.float64))
        torch.testing.assert_close(
            held["weight"] @ held["weight"].mT, torch.eye(6, dtype=torch.float64)
        )


def test_lora_sb_lowers_the_loss_at_once():
    data = batches(3)
    model, _ = adapt("lora_sb", rank=8, learning_rate=1e-3, data=data, loss=loss)
    before, after = (sum(loss(m, b).item() for b in data) for m in (small_model(), model))
    assert after < before


def test_lora_sb_needs_a_loss():
    with pytest.raises(DataError, match="gradient"):
        adapt("lora_sb", rank=4, data=batches(2))


def test_pmss_holds_columns_and_rows_of_the_weight():
    model, report = adapt("pmss", rank=6)
    assert report.totals["trainable"] == 3 * 36
    for path, op in operators(model).items():
        held, w = leaves(op), adapted(model)[path].base.dense()
        for parts, whole in ((held["b"].mT, w.mT), (held["weight"], w)):
            found = (parts[:, None] == whole[None]).all(-1)  # which row each part is
            assert found.sum(1).tolist() == [1] * 6
            assert int(found.any(0).sum()) == 6


def test_pmss_spans_a_low_rank_weight():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10)).double()
    b, a = (torch.randn(*s, generator=generator).double() for s in ((10, 3), (3, 12)))
    with torch.no_grad():
        model[0].weight.copy_(b @ a)
    adapt("pmss", model, rank=3)
    held = leaves(operators(model)["0"])
    core = torch.linalg.pinv(held["b"]) @ b @ a @ torch.linalg.pinv(held["weight"])
    torch.testing.assert_close(held["b"] @ core @ held["weight"], b @ a)


def test_loldu_trains_the_diagonal_and_one_factor():
    model, report = adapt("loldu", rank=5, alpha=10.0)
    assert report.totals["trainable"] == 3 * 6
    for path, op in operators(model).items():
        held, w = leaves(op), adapted(model)[path].base.dense()
        p, lower, upper = torch.linalg.lu(w)
        torch.testing.assert_close(held["diagonal"], upper.diagonal()[:5])
        torch.testing.assert_close(held["weight"], (p @ lower)[:, :5])
        assert held["weight_1"].tolist() == [[2.0]]
        with torch.no_grad():
            held["weight_1"].zero_()
        kept = w - 2.0 * (p @ lower)[:, :5] @ upper[:5]
        torch.testing.assert_close(op.dense(), kept)


def test_loldu_takes_a_singular_weight():
    model = nn.Sequential(nn.Linear(6, 6))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(6, 6))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    before = model(x)
    adapt("loldu", model, rank=4)
    torch.testing.assert_close(model(x), before)
