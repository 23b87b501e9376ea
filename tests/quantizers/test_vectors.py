"""Vector codebooks: nearest by brute force, k-means' conditions, scikit-learn's own, and bytes."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

import corank
from corank.linalg import learned_codebook, nearest_centres
from corank.metrics import second_moment
from corank.models import Site, find_sites, install, read
from corank.operators import LowRank, VectorQuantised, build, describe
from corank.quantizers import vector_codebooks
from corank.rewrites import Unit, compensation, factorwise, truncation
from tests.methods.stats import unit
from tests.verbs.models import tiny_llama, tokens


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def site(out, into, **stats):
    return Site("layer", "q", 0, (out, into), False, "linear", stats=stats)


def lost(points, weights, centres, labels):
    return float((weights * (points - centres[labels]).square()).sum())


def learned(points, weights, rounds, count=6):
    return learned_codebook(points, weights, count, rounds, torch.Generator().manual_seed(0))


def test_every_point_has_its_nearest_centre_in_its_own_weights():
    points, weights, centres = normal(50, 3), normal(50, 3, seed=1) ** 2, normal(6, 3, seed=2)
    found = nearest_centres(points, weights, centres)
    for point, weigh, label in zip(points, weights, found, strict=True):
        distances = [float((weigh * (point - c) ** 2).sum()) for c in centres]
        assert int(label) == int(np.argmin(distances))


def test_centres_are_the_weighted_means_of_their_own_and_no_round_loses():
    points, weights = normal(200, 3), normal(200, 3, seed=1) ** 2
    losses = [lost(points, weights, *learned(points, weights, rounds)) for rounds in (1, 2, 4, 99)]
    assert losses == sorted(losses, reverse=True)
    centres, labels = learned(points, weights, 99)
    for i, centre in enumerate(centres):
        own, weigh = points[labels == i], weights[labels == i]
        torch.testing.assert_close(centre, (weigh * own).sum(0) / weigh.sum(0))
    again = learned(points, weights, 99)
    assert torch.equal(again[0], centres)
    assert torch.equal(again[1], labels)


def test_where_it_ends_scikit_learn_ends_too():
    points, ones = normal(300, 2), torch.ones(300, 2, dtype=torch.float64)
    start, _ = learned(points, ones, 1)
    ours, labels = learned(points, ones, 300)
    theirs = KMeans(6, init=start.numpy(), n_init=1, tol=0, max_iter=300).fit(points.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs.cluster_centers_, rtol=1e-8)
    assert lost(points, ones, ours, labels) == pytest.approx(theirs.inertia_)


def test_few_distinct_points_and_coordinates_without_weight_are_no_trouble():
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(5, 1)
    centres, labels = learned(points, torch.ones_like(points), 10)
    assert torch.equal(centres[labels], points)
    weights = torch.tensor([1.0, 0.0]).expand_as(points)
    centres, labels = learned(points, weights, 10)
    assert centres.isfinite().all()
    assert lost(points, weights, centres, labels) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "length", "rows"), [(3, 2, None), (8, 4, None), (2, 3, 4)])
def test_every_vector_is_the_nearest_of_its_book_and_the_bytes_are_told(bits, length, rows, dtype):
    weight = normal(10, 13).to(dtype)
    quantizer = vector_codebooks(bits, length, rows)
    op = quantizer(weight, site(10, 13))
    assert quantizer.counts((10, 13), dtype) == (op.numel(), op.bytes())
    assert op.dtype == dtype
    made = op.dense()
    for i in range(10):
        book = op.codebooks[i // (rows or 10)].double()
        for start in range(0, 13, length):
            stop = min(start + length, 13)
            wanted = weight[i, start:stop].double()
            least = (book[:, : stop - start] - wanted).square().sum(1).min()
            here = (made[i, start:stop].double() - wanted).square().sum()
            assert float(here) == pytest.approx(float(least), rel=1e-4, abs=1e-9)
    again = build(describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    assert torch.equal(again.dense(), made)


def test_codes_of_eight_bits_and_pairs_meet_every_pair_of_a_small_weight():
    weight = normal(8, 12)
    op = vector_codebooks(8, 2)(weight, site(8, 12))
    torch.testing.assert_close(op.dense(), weight)  # 48 pairs, 256 vectors


def test_weighing_by_the_inputs_loses_less_at_the_outputs():
    given = unit(32, 64, frozenset({"gram", "square_mean"}))
    metric = second_moment()({"gram": given.sites[0].stats["square_mean"].diag()})
    weight = given.ops[0].dense()
    losses = []
    for weighted in (False, True):
        op = vector_codebooks(5, 2, weighted=weighted)(weight, given.sites[0])
        losses.append(float(metric.loss(weight - op.dense())))
    assert losses[1] < 0.9 * losses[0]
    table = site(32, 64, row_counts=torch.tensor([100.0] * 4 + [0.0] * 28), square_mean=None)
    made = vector_codebooks(5, 4, weighted=True)(weight, table).dense()
    plain = vector_codebooks(5, 4)(weight, table).dense()
    assert (made - weight)[:4].norm() < (plain - weight)[:4].norm()


def test_more_bits_and_more_books_lose_less():
    weight = normal(32, 64)
    losses = [
        float((vector_codebooks(bits, 4, rows)(weight, site(32, 64)).dense() - weight).norm())
        for bits, rows in ((2, None), (4, None), (6, None), (6, 8))
    ]
    assert losses == sorted(losses, reverse=True)


def test_it_stands_behind_compensation_factors_and_files(tmp_path):
    quantizer = vector_codebooks(4, 2, weighted=True)
    family = compensation(quantizer, truncation(second_moment()))
    given = unit(24, 40, family.needs)
    (op,) = family.build(given, 3)
    assert family.counts(given, 3) == [(op.numel(), op.bytes())]
    low = LowRank(normal(24, 6), normal(6, 40))
    (made,) = factorwise(quantizer, Unit(given.sites, [low]))
    assert [type(part) for part in made.operators] == [VectorQuantised] * 2
    model = tiny_llama()
    for place in find_sites(model):
        weight = read(model, place).dense().detach()
        install(model, place, vector_codebooks(6, 2)(weight, place))
    corank.save(model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**tokens(1)[0]).logits, model(**tokens(1)[0]).logits)
    with pytest.raises(ValueError, match="quantised already"):
        corank.quantize(model, "round_to_nearest")


def test_bad_settings_and_bad_parts_are_refused():
    for more, told in (({"bits": 9}, "bits must be"), ({"length": 0}, "at least 1"),
                       ({"rows": 0}, "at least 1"), ({"rounds": 0}, "at least 1")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            vector_codebooks(**more)
    weight = normal(4, 6)
    weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer"):
        vector_codebooks(2, 2)(weight, site(4, 6))
    codes, books = torch.zeros(5, 1, dtype=torch.uint8), normal(3, 4, 3)
    for parts in ((codes.int(), books), (codes[:4], books), (codes, books[:2]), (codes, books[0])):
        with pytest.raises(ValueError, match="VectorQuantised"):
            VectorQuantised(*parts, (5, 5), 2, 2)
