"""Trained singular values: starts, counts, patterns, freezing, coincidences."""

import pytest
import torch
from torch import nn

import corank
from corank.adapters import adapted, adapters
from corank.errors import SiteError

from .small import batches, leaves, loss, operators, small_model, stir

X = batches(1)[0]


def adapt(key, model=None, **params):
    model = small_model() if model is None else model
    return model, corank.adapt(model, key, **params)


def spectrum(values, seed=0):
    """A square linear layer with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for _ in range(2))
    model = nn.Sequential(nn.Linear(n, n))
    with torch.no_grad():
        model[0].weight.copy_(u * torch.tensor(values) @ v)
    return model


def test_svfit_keeps_99_percent_of_the_energy():
    _, report = adapt("svfit", spectrum([10.0, 5.0, 1.5, 0.5, 0.1]))
    assert report.totals["trainable"] == 3  # 100 + 25 = 97.9%, with 2.25 99.8%
    _, report = adapt("svfit", spectrum([10.0, 5.0, 1.5, 0.5, 0.1]), energy=0.9)
    assert report.totals["trainable"] == 2
    _, report = adapt("svfit", spectrum([10.0, 5.0, 1.5, 0.5, 0.1]), energy=1.0)
    assert report.totals["trainable"] == 5


def test_svfit_dry_run_bounds_the_count():
    planned = corank.adapt(small_model().to("meta"), "svfit", dry_run=True)
    assert planned.totals["trainable"] == 16 + 20 + 20


def test_full_rank_svfit_vectorfit_and_plain_svft_are_one_method():
    models = [
        adapt("svfit", small_model(), rank=None, energy=1.0)[0],
        adapt("vectorfit", small_model(), freeze=0)[0],
        adapt("svft", small_model(), pattern="plain")[0],
    ]
    for path in operators(models[0]):
        kinds = [operators(model)[path] for model in models]
        for op in kinds:
            with torch.no_grad():
                leaves(op)["gate"].copy_(torch.linspace(-1, 1, len(leaves(op)["gate"])))
        torch.testing.assert_close(kinds[0].dense(), kinds[1].dense())
        torch.testing.assert_close(kinds[0].dense(), kinds[2].dense())


def test_svdiff_is_svfit_until_a_value_would_go_below_zero():
    svdiff, svfit = adapt("svdiff")[0], adapt("svfit", energy=1.0)[0]
    for path, op in operators(svdiff).items():
        other, s = operators(svfit)[path], leaves(op)["diagonal"]
        with torch.no_grad():
            leaves(op)["diagonal_1"].copy_(-0.5 * s)
            leaves(other)["gate"].copy_(-0.5 * s)
        torch.testing.assert_close(op.dense(), other.dense())
        with torch.no_grad():
            leaves(op)["diagonal_1"].copy_(-2 * s)
        assert not bool(op.dense().any())


def test_svdiff_scale_strengthens_what_was_learned():
    one, two = adapt("svdiff")[0], adapt("svdiff", scale=2.0)[0]
    stir(one, scale=0.01)
    stir(two, scale=0.005)
    torch.testing.assert_close(one(X), two(X))


def test_svft_counts_are_table_7s():
    for pattern, d in (("plain", 3), ("banded", 2), ("random", 2), ("top_k", 2)):
        _, report = adapt("svft", pattern=pattern, off_diagonal=d)
        counts = [k if pattern == "plain" else k * d + (k - d) * (d + 1) for k in (16, 20, 20)]
        assert report.totals["trainable"] == sum(counts)


def test_svft_banded_is_a_band():
    model, _ = adapt("svft", pattern="banded", off_diagonal=1)
    for op in operators(model).values():
        k, index = leaves(op)["weight"].shape[1], leaves(op)["index"]
        i, j = index // k, index % k
        assert bool(((i - j).abs() <= 1).all())


def test_svft_without_a_band_is_plain():
    plain, banded = (
        adapt("svft", pattern=p, off_diagonal=d)[0] for p, d in (("plain", 2), ("banded", 0))
    )
    for model in (plain, banded):
        stir(model, seed=4)
    torch.testing.assert_close(plain(X), banded(X))


def test_svft_top_k_takes_the_most_aligned_pairs():
    model, _ = adapt("svft", pattern="top_k", off_diagonal=1)
    weight = adapted(model)["4"].base.dense()  # 20 x 20
    u, _, vh = torch.linalg.svd(weight)
    alignment = (u.T @ vh.T).abs()
    index = leaves(operators(model)["4"])["index"].long()
    chosen = torch.zeros(400, dtype=torch.bool).index_fill(0, index, True).view(20, 20)
    assert alignment[chosen].min() >= alignment[~chosen].max()


def test_svft_random_places_are_distinct_and_the_seeds():
    places = [
        leaves(operators(adapt("svft", pattern="random", seed=seed)[0])["4"])["index"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(places[0], places[1])
    assert not torch.equal(places[0], places[2])
    assert len(set(places[0].tolist())) == len(places[0])


def test_svft_truncated_holds_the_leading_triples_only():
    model, report = adapt("svft", off_diagonal=1, rank=6)
    assert report.totals["trainable"] == 3 * (6 * 3 - 2)
    for path, weight in adapted(model).items():
        u = torch.linalg.svd(weight.base.dense(), full_matrices=False).U[:, :6]
        held = leaves(operators(model)[path])["weight"]
        torch.testing.assert_close((held.mT @ u).abs(), torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("key", "params", "error"),
    [
        ("svft", {"pattern": "checkered"}, ValueError),
        ("svft", {"off_diagonal": -1}, ValueError),
        ("svft", {"off_diagonal": 16}, SiteError),
        ("svfit", {"energy": 0.0}, ValueError),
        ("salt", {"ratio": 1.0}, ValueError),
        ("salt", {"rank": 16}, SiteError),
        ("vectorfit", {"interval": 0}, ValueError),
    ],
)
def test_what_cannot_be_is_refused(key, params, error):
    with pytest.raises(error):
        adapt(key, **params)


def test_salt_counts_and_top():
    _, report = adapt("salt", rank=3, ratio=0.25)
    tops = [4, 5, 5]
    expected = [2 * t + 2 * 3 * (k - t) for t, k in zip(tops, (16, 20, 20), strict=True)]
    assert report.totals["trainable"] == sum(expected)


def test_salt_cuts_negative_entries_only_where_asked():
    cut, whole = (adapt("salt", rank=3, rectify=flag)[0] for flag in (True, False))
    for model in (cut, whole):
        torch.testing.assert_close(model(X), small_model()(X))
        stir(model, scale=0.3)
    op, other = operators(cut)["4"], operators(whole)["4"]
    held = leaves(other)
    middle = held["weight_2"].mT @ op.dense() @ held["weight_3"].mT
    free = held["weight_2"].mT @ other.dense() @ held["weight_3"].mT
    assert bool((free < -1e-3).any())
    torch.testing.assert_close(middle, free.relu())


def test_vectorfit_trains_values_and_biases_and_nothing_else():
    model, report = adapt("vectorfit")
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {f"{i}.bias" for i in (0, 2, 4)} | {
        f"{i}.operator.operators.0.operators.1.gate" for i in (0, 2, 4)
    }
    assert report.totals["trainable"] == 16 + 20 + 20 + 36 + 20 + 20
    assert adapters(model)["default"].also == ("0.bias", "2.bias", "4.bias")


def run(model, control, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, batches(6)[step % 6]).backward()
        optimizer.step()


def freezing(**params):
    model, _ = adapt("vectorfit", smoothing=0.5, **params)
    control = corank.controller(model)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    return model, control, optimizer


def test_vectorfit_freezes_the_strongest_and_lets_them_go_again():
    model, control, optimizer = freezing(warmup=4, interval=3, freeze=2)
    memory = control.trainings[0].memory
    run(model, control, optimizer, 3)
    assert memory["frozen"] == []
    run(model, control, optimizer, 1)
    frozen = memory["frozen"]
    assert len(frozen) == 2
    strength = {n[9:]: v for n, v in memory.items() if n.startswith("strength ")}
    assert len(strength) == 6
    assert min(strength[n] for n in frozen) >= max(
        v for n, v in strength.items() if n not in frozen
    )
    vectors = {f"{i}/bias": model[i].bias for i in (0, 2, 4)}
    for path, op in operators(model).items():
        vectors[f"{path}/operators.1.gate"] = leaves(op)["gate"]
    before = {n: v.detach().clone() for n, v in vectors.items()}
    run(model, control, optimizer, 3)
    for name, vector in vectors.items():
        assert torch.equal(vector, before[name]) == (name in frozen)
    memory["frozen"] = []
    run(model, control, optimizer, 1)
    assert not any(torch.equal(vectors[n], before[n]) for n in frozen)


def test_vectorfit_strength_is_the_smoothed_mean_distance():
    model, control, optimizer = freezing(warmup=100)
    memory, expected = control.trainings[0].memory, 0.0
    start = model[0].bias.detach().clone()
    for _ in range(3):
        run(model, control, optimizer, 1)
        expected = 0.5 * expected + 0.5 * (model[0].bias - start).abs().mean().item()
        assert memory["strength 0/bias"] == pytest.approx(expected)


def test_vectorfit_never_freezes_everything():
    model, control, optimizer = freezing(warmup=1, interval=1, freeze=50)
    run(model, control, optimizer, 1)
    assert len(control.trainings[0].memory["frozen"]) == 5
