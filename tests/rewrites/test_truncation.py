"""The solver's family against explicit whitening and singular values."""

import pytest
import torch

from corank.errors import SiteError
from corank.metrics import Measure, Metric, euclidean, second_moment
from corank.models import Site
from corank.operators import Dense
from corank.rewrites import Unit, spectrum, truncation

OUT, IN = 12, 9


def moment(n, seed, rank=None):
    x = torch.randn(rank or 3 * n, n, generator=torch.Generator().manual_seed(seed)).double()
    return x.mT @ x / len(x)


def weight(out=OUT, into=IN, seed=0):
    return torch.randn(out, into, generator=torch.Generator().manual_seed(seed)).double()


def site(name="s", shape=(OUT, IN), **stats):
    return Site(name, "q", 0, shape, False, "linear", stats=stats)


def root(moment):
    if moment is None:
        return None
    if moment.ndim == 1:
        return torch.diag(moment.sqrt())
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT


def whiten(metric, w):
    left, right = root(metric.left), root(metric.right)
    w = w if left is None else left @ w
    return w if right is None else w @ right


METRICS = {
    "euclidean": lambda m, n: Metric(),
    "right": lambda m, n: Metric(right=moment(n, 1)),
    "right rank deficient": lambda m, n: Metric(right=moment(n, 1, 3)),
    "left": lambda m, n: Metric(left=moment(m, 2)),
    "both": lambda m, n: Metric(moment(m, 2), moment(n, 1)),
    "diagonals": lambda m, n: Metric(moment(m, 2).diag(), moment(n, 1).diag()),
    "mixed": lambda m, n: Metric(moment(m, 2).diag(), moment(n, 1)),
}


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (8, 8)])
@pytest.mark.parametrize("name", METRICS)
def test_spectrum_and_error_are_eckart_youngs(name, shape):
    metric, w = METRICS[name](*shape), weight(*shape)
    expected = torch.linalg.svdvals(whiten(metric, w)).square()
    torch.testing.assert_close(spectrum(w, metric), expected, rtol=1e-9, atol=1e-9)
    family = truncation(Measure(frozenset(), lambda stats: metric))
    unit = Unit([site(shape=shape)], [Dense(w)])
    for rank in (1, 3, 7):
        (op,) = family.build(unit, rank)
        error = metric.loss(w - op.dense())
        torch.testing.assert_close(error, expected[rank:].sum(), rtol=1e-6, atol=1e-8)


def test_the_menu_states_what_building_then_costs():
    gram, w = moment(IN, 1), weight()
    family = truncation(second_moment())
    unit = Unit([site(gram=gram)], [Dense(w)])
    menu = family.menu(unit)
    assert menu.sizes == [1, 2, 3, 4, 5, None]  # 6 * (12 + 9) > 12 * 9
    for value, cost, error in zip(menu.sizes, menu.costs, menu.errors, strict=True):
        op = unit.ops[0] if value is None else family.build(unit, value)[0]
        assert op.bytes() == cost
        loss = Metric(right=gram).loss(w - op.dense())
        assert float(loss) == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_a_unit_of_several_sites_shares_its_input_factor():
    gram = moment(IN, 1)
    sites = [site("a", gram=gram), site("b", gram=gram)]
    ops = [Dense(weight(seed=1)), Dense(weight(seed=2))]
    family = truncation(second_moment())
    unit = Unit(sites, ops)
    first, second = family.build(unit, 4)
    assert first.a is second.a
    stacked = torch.cat([op.dense() for op in ops])
    error = stacked - torch.cat([first.dense(), second.dense()])
    bound = spectrum(stacked, Metric(right=gram))[4:].sum()
    torch.testing.assert_close(Metric(right=gram).loss(error), bound, rtol=1e-6, atol=1e-9)
    assert family.menu(unit).costs[3] == 4 * (2 * OUT + IN) * weight().dtype.itemsize


def test_sites_that_share_a_factor_are_weighed_by_the_mean_of_their_moments():
    grams = [moment(IN, 1), moment(IN, 2)]
    sites = [site(str(i), gram=g) for i, g in enumerate(grams)]
    ops = [Dense(weight(seed=1)), Dense(weight(seed=2))]
    built = truncation(second_moment()).build(Unit(sites, ops), 3)
    mean = Metric(right=(grams[0] + grams[1]) / 2)
    stacked = torch.cat([op.dense() for op in ops])
    error = stacked - torch.cat([op.dense() for op in built])
    torch.testing.assert_close(mean.loss(error), spectrum(stacked, mean)[3:].sum())


def test_an_embeddings_table_is_centred_by_token_frequency():
    from corank.metrics import covariance

    table = weight(20, 6) + 5
    counts = torch.rand(20, generator=torch.Generator().manual_seed(3)).double()
    counts /= counts.sum()
    place = Site("e", "embed", None, (20, 6), False, "embedding", stats={"row_counts": counts})
    (op,) = truncation(covariance()).build(Unit([place], [Dense(table)]), 2)
    centred = table - counts @ table
    tail = torch.linalg.svdvals(counts.sqrt()[:, None] * centred)[2:].square().sum()
    error = (counts[:, None] * (centred - op.dense()).square()).sum()
    torch.testing.assert_close(error, tail)


@pytest.mark.parametrize("rank", [0, 10])
def test_an_impossible_rank_names_the_site(rank):
    unit = Unit([site("model.layers.0.q_proj")], [Dense(weight())])
    with pytest.raises(SiteError, match=r"model\.layers\.0\.q_proj.*outside 1 to 9"):
        truncation(euclidean()).build(unit, rank)


def test_a_weight_that_is_not_finite_names_the_site():
    w = weight()
    w[3, 4] = torch.nan
    unit = Unit([site("model.layers.0.q_proj")], [Dense(w)])
    with pytest.raises(SiteError, match="q_proj"):
        truncation(euclidean()).build(unit, 2)


def test_factors_keep_the_dtype_and_stay_balanced():
    w = (weight() * 1e4).to(torch.float16)
    gram = moment(IN, 1) * 1e8
    (op,) = truncation(second_moment()).build(Unit([site(gram=gram)], [Dense(w)]), 5)
    assert op.dtype == torch.float16
    assert op.b.isfinite().all()
    torch.testing.assert_close(
        op.b.float().norm(dim=0), op.a.float().norm(dim=1), rtol=0.01, atol=0
    )
