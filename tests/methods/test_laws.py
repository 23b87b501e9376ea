"""Every method of compression and quantisation against its laws; a new method adds no line."""

import inspect
from functools import partial
from itertools import pairwise

import pytest
import torch

from corank.linalg import wrapped_sparse
from corank.models import Site
from corank.operators import (
    Dense,
    Quantised,
    is_settled,
    normal_float,
    quantise_codebook,
    quantise_signs,
    quantise_uniform,
    settle,
)
from corank.registry import METHODS
from corank.rewrites import Unit, spectrum

from .stats import unit

SHAPES = [(24, 16), (16, 24), (16, 16)]
RECIPES = [m for m in METHODS.values()
           if m.area in ("compress", "quantize") and "setting" not in m.laws]  # fmt: skip
COMPRESSES = [m for m in RECIPES if "shares_layers" not in m.laws]  # those say nothing of one layer


def law(name):
    chosen = [m for m in RECIPES if name in m.laws]
    return pytest.mark.parametrize("method", chosen, ids=[m.key for m in chosen])


#: Those that rewrite single weights.
ALONE = [m for m in COMPRESSES if "pairs" not in m.laws]

everyone = pytest.mark.parametrize("method", ALONE, ids=[m.key for m in ALONE])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "square"])


#: What makes a method fit weights as small as those here.
SMALL = {"armor": {"block": 4, "steps": 20}, "dsformer": {"block": 8}}


def configured(method):
    return method.recipe(SMALL.get(method.key, {}))


def of(recipe, shape, dtype=torch.float64):
    return unit(*shape, recipe.family.needs, dtype)


def size(recipe, given):
    """A size that the method offers, a small one where there are many."""
    offered = [s for s in recipe.family.menu(given).sizes if s is not None]
    sizes = [s for s in offered if isinstance(s, int)]
    if sizes:
        return max([s for s in sizes if s <= 5] or sizes[:1])
    return offered[len(offered) // 2] if offered else 0


def measure(recipe, given):
    site = given.sites[0]
    return recipe.family.of(site).measure(site.stats)


@pytest.mark.parametrize("method", RECIPES, ids=[m.key for m in RECIPES])
def test_is_documented_and_configurable(method):
    assert method.paper.title
    assert method.paper.where
    assert method.laws
    assert method.summary.endswith(".")
    for name, default in method.parameters.items():
        assert default is not inspect.Parameter.empty, name
    with pytest.raises(ValueError, match="unknown parameter"):
        method.recipe({"no_such_parameter": 1})


LINEAR = [m for m in ALONE if "rounds_inputs" not in m.laws]


@pytest.mark.parametrize("method", LINEAR, ids=[m.key for m in LINEAR])
@shapes
def test_forward_is_dense_linear_and_batched(method, shape):
    recipe = configured(method)
    given = of(recipe, shape)
    (op,) = recipe.family.build(given, size(recipe, given))
    x = torch.randn(3, 2, shape[1], dtype=torch.float64)
    assert op.shape == shape
    torch.testing.assert_close(op(x), x @ op.dense().mT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(op(2 * x - x.flip(0)), 2 * op(x) - op(x).flip(0))
    torch.testing.assert_close(op(x)[1, 1], op(x[1, 1]))


@everyone
def test_results_depend_on_the_seed_alone(method):
    recipe = configured(method)
    builds = []
    for state in (1, 2):
        torch.manual_seed(state)
        given = of(recipe, (24, 16))
        builds.append(recipe.family.build(given, size(recipe, given))[0].dense())
    assert torch.equal(*builds)


@everyone
def test_reads_only_the_statistics_it_declares(method):
    recipe = configured(method)
    stripped = of(recipe, (24, 16))
    recipe.family.build(stripped, size(recipe, stripped))
    recipe.family.menu(stripped).errors  # noqa: B018
    if recipe.family.needs:
        bare = unit(24, 16, frozenset())
        with pytest.raises((KeyError, ValueError)):
            recipe.family.build(bare, size(recipe, stripped))


@everyone
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_stays_what_it_was(method, dtype):
    recipe = configured(method)
    given = of(recipe, (24, 16), dtype)
    (op,) = recipe.family.build(given, size(recipe, given))
    assert op.dtype == dtype
    assert op.dense().isfinite().all()


@law("compresses")
@shapes
def test_full_rank_is_lossless_and_lower_ranks_lose_more(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    weight = given.ops[0].dense()
    errors = [
        float((recipe.family.build(given, r)[0].dense() - weight).norm() / weight.norm())
        for r in (2, 8, min(shape))
    ]
    assert errors[-1] < 1e-6
    assert errors[0] > errors[1] > errors[-1]


@law("compresses")
@shapes
def test_stores_what_the_formula_says(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    for rank in (1, 4):
        assert recipe.family.build(given, rank)[0].numel() == rank * sum(shape)
    menu = recipe.family.menu(given)
    assert menu.costs[:2] == [8 * sum(shape), 16 * sum(shape)]
    assert (menu.sizes[-1], menu.costs[-1]) == (None, 8 * shape[0] * shape[1])


@law("selects")
@shapes
def test_keeps_columns_and_rows_and_the_best_link_between_them(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    weight = given.ops[0].dense()
    (op,) = recipe.family.build(given, 5)
    c, link, r = (part.dense() for part in op.operators)
    assert all(any(torch.equal(column, w) for w in weight.mT) for column in c.mT)
    assert all(any(torch.equal(row, w) for w in weight) for row in r)
    error = weight - c @ link @ r
    assert (c.mT @ error @ r.mT).abs().max() < 1e-9  # the condition of least squares for the link
    assert recipe.family.counts(given, 5) == [(op.numel(), op.bytes())]
    assert op.numel() == 5 * (sum(shape) + 5)
    (whole,) = recipe.family.build(given, min(shape))
    torch.testing.assert_close(whole.dense(), weight)


@law("interpolates")
@shapes
def test_some_outputs_stay_and_the_others_are_their_best_combinations(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    weight, gram = given.ops[0].dense(), given.sites[0].stats["gram"]
    menu = recipe.family.menu(given)
    assert menu.sizes[:5] == [1, 2, 3, 4, 5]
    for rank in (1, 5):
        (op,) = recipe.family.build(given, rank)
        error, kept = weight - op.dense(), op.operators[2].dense()
        places = [int((weight == row).all(1).nonzero()) for row in kept]
        assert len({*places}) == rank
        assert error[places].abs().max() < 1e-9
        assert (error @ gram @ kept.mT).abs().max() < 1e-9 * gram.abs().max()  # least squares
        assert menu.errors[rank - 1] == pytest.approx(float((error @ gram * error).sum()))
        assert recipe.family.counts(given, rank) == [(op.numel(), op.bytes())]
        assert op.numel() == rank * (sum(shape) - rank)
    (whole,) = recipe.family.build(given, min(shape))
    torch.testing.assert_close(whole.dense(), weight)


@law("narrows")
@shapes
def test_keeps_rows_as_they_are_and_counts_them_with_their_index(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    weight, losses = given.ops[0].dense(), []
    for kept in (3, 9, shape[0]):
        (op,) = recipe.family.build(given, kept)
        assert recipe.family.counts(given, kept) == [(op.numel(), op.bytes())]
        assert op.numel() == kept * shape[1]
        rows = (op.dense() != 0).any(1)
        assert rows.sum() == kept
        torch.testing.assert_close(op.dense()[rows], weight[rows], rtol=0, atol=0)
        losses.append(float(measure(recipe, given).loss(weight - op.dense())))
    menu = recipe.family.menu(given)
    assert losses[-1] == 0
    assert [menu.errors[menu.sizes.index(k)] for k in (3, 9)] == pytest.approx(losses[:2])
    with pytest.raises(ValueError, match="channels cannot stay"):
        recipe.family.build(given, shape[0] + 1)


@law("stacks")
@shapes
def test_each_term_is_the_nearest_to_what_those_before_left(method, shape):
    recipe = method.recipe({"rank": 2, "terms": 12})
    given = of(recipe, shape)
    weight, scale = given.ops[0].dense(), given.sites[0].stats["square_mean"].sqrt()
    rest, losses = weight * (scale / scale.mean()), []
    for size in range(1, 4):
        u, s, vh = torch.linalg.svd(rest.abs(), full_matrices=False)
        rest = rest - torch.where(rest > 0, 1.0, -1.0) * (u[:, :2] * s[:2] @ vh[:2])
        (op,) = recipe.family.build(given, size)
        torch.testing.assert_close(op.dense(), weight - rest / (scale / scale.mean()))
        assert recipe.family.counts(given, size) == [(op.numel(), op.bytes())]
        losses.append(float(rest.norm()))
    assert losses == sorted(losses, reverse=True)


@law("encodes")
@shapes
def test_a_change_is_encoded_nearer_by_more_vectors_in_the_bytes_that_were_told(method, shape):
    recipe = method.recipe({})
    assert recipe.delta
    given = of(recipe, shape)
    weight, errors = given.ops[0].dense(), []
    for rank in (1, 4, 12):
        (op,) = recipe.family.build(given, rank)
        assert recipe.family.counts(given, rank) == [(op.numel(), op.bytes())]
        errors.append(float((op.dense() - weight).norm()))
    assert errors == sorted(errors, reverse=True)
    assert all(low < high for low, high in pairwise(recipe.family.menu(given).costs))


@law("sparse_codes")
@shapes
def test_codes_are_sparse_counted_and_better_with_more_atoms(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    metric, weight = measure(recipe, given), given.ops[0].dense()
    losses = []
    for atoms in (2, 6, 12):
        (op,) = recipe.family.build(given, atoms)
        assert recipe.family.counts(given, atoms) == [(op.numel(), op.bytes())]
        codes = op.operators[0].dense()
        assert codes.shape == (shape[0], atoms)
        assert ((codes != 0).sum(1) <= atoms // 2).all()
        losses.append(float(metric.loss(weight - op.dense())))
    assert losses == sorted(losses, reverse=True)
    menu = recipe.family.menu(given)
    assert menu.errors == pytest.approx(
        [float(metric.loss(weight - recipe.family.build(given, k)[0].dense())) for k in
         menu.sizes[:-1]] + [0.0], rel=1e-3,
    )  # fmt: skip


@law("knapsack")
@shapes
def test_what_a_knapsack_chooses_from_is_counted_sparse_and_pays(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    weight = given.ops[0].dense()
    menu = recipe.family.menu(given)
    assert menu.errors == sorted(menu.errors, reverse=True)
    assert menu.sizes[-1] is None
    assert len({key for key, _ in menu.sizes[:-1]}) > 1
    for chosen, cost, error in zip(menu.sizes, menu.costs, menu.errors, strict=True):
        if chosen is None:
            continue
        (op,) = recipe.family.build(given, chosen)
        assert recipe.family.counts(given, chosen) == [(op.numel(), op.bytes())]
        assert op.bytes() == cost
        assert float((weight - op.dense()).norm() / weight.norm()) == pytest.approx(error)
    (whole,) = recipe.family.build(given, (1.0, min(shape)))
    torch.testing.assert_close(whole.dense(), weight)


@law("two_of_four")
@shapes
def test_two_of_four_with_blocks_is_counted_and_better_than_without(method, shape):
    losses = []
    for steps in (0, 20):
        recipe = method.recipe({"block": 4, "steps": steps})
        given = of(recipe, shape)
        metric, weight = measure(recipe, given), given.ops[0].dense()
        (op,) = recipe.family.build(given, 0)
        assert recipe.family.counts(given, 0) == [(op.numel(), op.bytes())]
        core = op.operators[1].dense()
        if steps == 0:
            torch.testing.assert_close(op.dense(), weight * (core != 0))
        assert ((core != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()
        losses.append(float(metric.loss(weight - op.dense())))
        menu = recipe.family.menu(given)
        if op.bytes() < given.bytes:
            assert (menu.sizes, menu.costs) == ([0, None], [op.bytes(), given.bytes])
            assert menu.errors == pytest.approx([losses[-1], 0.0])
        else:
            assert menu.sizes == [None]
    assert losses[1] < losses[0]
    for block, problem in ((32, "blocks of 32"), (12, "blocks of 12")):
        with pytest.raises(ValueError, match=problem):
            method.recipe({"block": block}).family.build(given, 0)
    with pytest.raises(ValueError, match="no multiple of 4"):
        method.recipe({}).family.menu(of(recipe, (24, 18)))


@law("sparsifies")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sparse_matrix_is_stored_in_its_smallest_form(method, dtype):
    recipe = method.recipe({})
    given = of(recipe, (24, 16), dtype)
    menu, weight = recipe.family.menu(given), given.ops[0].dense()
    kinds = set()
    for count, cost, error in zip(menu.sizes[:-1], menu.costs, menu.errors, strict=False):
        (op,) = recipe.family.build(given, count)
        kinds.add(type(op).__name__)
        assert recipe.family.counts(given, count) == [(op.numel(), op.bytes())]
        assert op.bytes() == cost
        assert op.numel() == count >= int((op.dense() != 0).sum())
        assert float((weight - op.dense()).float().square().sum()) == pytest.approx(error, rel=0.01)
    assert kinds == {"Sparse", "Bitmap"}
    with pytest.raises(ValueError, match="outside 1 to 384"):
        recipe.family.build(given, 385)


@law("dense_sparse")
@shapes
def test_a_larger_basis_for_every_block_is_better_and_a_full_one_loses_nothing(method, shape):
    for ratio in (1.0, 2.0):
        recipe = method.recipe({"block": 8, "rows_per_nonzero": ratio})
        given = of(recipe, shape)
        weight, menu = given.ops[0].dense(), recipe.family.menu(given)
        errors = []
        for rows in (1, 2, 4, 8):
            (op,) = recipe.family.build(given, rows)
            codes, basis = op.operators
            assert basis.blocks.shape == (shape[1] // 8, rows, 8)
            kept = (codes.dense() != 0).unflatten(1, (-1, rows)).sum(2)
            assert (kept <= max(1, round(rows / ratio))).all()
            errors.append(float((weight - op.dense()).square().sum()))
            if rows in menu.sizes:
                assert menu.errors[menu.sizes.index(rows)] == pytest.approx(errors[-1])
            settled = settle(op)
            assert recipe.family.counts(given, rows) == [(settled.numel(), settled.bytes())]
        assert errors == sorted(errors, reverse=True)
        assert (errors[-1] < 1e-12) == (ratio == 1)
    with pytest.raises(ValueError, match="blocks of 5"):
        method.recipe({"block": 5}).family.build(given, 1)
    with pytest.raises(ValueError, match="outside 1 to 8"):
        recipe.family.build(given, 9)


def test_armor_undoes_the_lengths_of_rows_and_columns():
    recipe = METHODS["armor"].recipe({"block": 4, "steps": 20})
    given = of(recipe, (24, 16))
    weight, site = given.ops[0].dense(), given.sites[0]
    columns = weight.norm(dim=0)
    rows = (weight / columns).norm(dim=1)
    unit_weight = weight / columns / rows[:, None]
    left, core, right = wrapped_sparse(
        unit_weight, site.stats["square_mean"], 4, 20, generator=site.generator()
    )
    made = torch.block_diag(*left) @ core @ torch.block_diag(*right)
    torch.testing.assert_close(
        recipe.family.build(given, 0)[0].dense(), rows[:, None] * made * columns
    )


def test_rocket_equals_its_own_recipe_done_literally():
    recipe = METHODS["rocket"].recipe({})
    given = of(recipe, (24, 16))
    weight, gram = given.ops[0].dense(), given.sites[0].stats["gram"]
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.sqrt()
    x = weight @ root
    d = torch.linalg.eigh(x.mT @ x).eigenvectors.flip(1)[:, :8].mT
    s = x @ d.mT
    lengths = (d @ torch.linalg.inv(root)).norm(dim=1)
    score = (s.abs() * (s.abs() * lengths)).sqrt()
    keep = torch.zeros_like(s, dtype=torch.bool)
    for i in range(24):
        keep[i, score[i].argsort(descending=True)[: int(8 * (0.5 - 0.005))]] = True
    rest = (s.abs() * lengths).masked_fill(keep, 0)
    keep |= rest >= rest.max()  # 0.5% of 192 places: at least one
    s = s * keep
    refit = torch.linalg.solve(s.mT @ s + 1e-3 * (s.mT @ s).trace() / 8 * torch.eye(8), s.mT @ x)
    best = min((d, refit), key=lambda atoms: float((x - s @ atoms).norm()))
    literal = s @ best @ torch.linalg.inv(root)
    (op,) = recipe.family.build(given, (2.0, 8))
    torch.testing.assert_close(op.dense(), literal)


def test_compot_with_full_rows_is_svd_llm():
    recipe = METHODS["compot"].recipe({"atoms_per_nonzero": 1.0})
    given = of(recipe, (24, 16))
    best = METHODS["svd_llm"].recipe({}).family.build(given, 5)[0].dense()
    torch.testing.assert_close(recipe.family.build(given, 5)[0].dense(), best)


@law("block_optimal")
@shapes
def test_every_block_is_the_nearest_of_its_rank(method, shape):
    recipe = method.recipe({"blocks": 2})
    given = of(recipe, shape)
    weight = given.ops[0].dense()
    menu = recipe.family.menu(given)
    for rank in (1, 3, min(shape) // 2):
        (op,) = recipe.family.build(given, rank)
        assert recipe.family.counts(given, rank) == [(op.numel(), op.bytes())]
        assert op.numel() == 2 * rank * sum(shape)
        made, lost = op.dense(), 0.0
        for block, whole in zip(_quarters(made), _quarters(weight), strict=True):
            u, s, vh = torch.linalg.svd(whole, full_matrices=False)
            torch.testing.assert_close(block, u[:, :rank] * s[:rank] @ vh[:rank])
            lost += float(s[rank:].square().sum())
        if rank in menu.sizes:
            assert menu.errors[menu.sizes.index(rank)] == pytest.approx(lost)
    with pytest.raises(ValueError, match="do not divide into 5 blocks"):
        method.recipe({"blocks": 5}).family.build(given, 1)


@law("shared_blocks")
@shapes
def test_blocks_share_their_factors_and_are_counted(method, shape):
    recipe = method.recipe({"blocks": 2})
    given = of(recipe, shape)
    (op,) = recipe.family.build(given, 3)
    assert recipe.family.counts(given, 3) == [(op.numel(), op.bytes())]
    assert op.numel() == 3 * (sum(shape) + 4)
    u, _, s, _, v = op.operators
    grid = torch.einsum("ipr,rij,jrq->ijpq", u.blocks, s.blocks, v.blocks)
    torch.testing.assert_close(grid.transpose(1, 2).reshape(shape), op.dense())
    errors = [float((given.ops[0].dense() - recipe.family.build(given, r)[0].dense()).norm())
              for r in (1, 3, 6)]  # fmt: skip
    assert errors == sorted(errors, reverse=True)
    with pytest.raises(ValueError, match="do not divide into 5 blocks"):
        method.recipe({"blocks": 5}).family.build(given, 1)


@law("common_center")
@shapes
def test_layers_share_their_middle_core_and_its_bytes(method, shape):
    recipe = method.recipe({})
    given = unit(*shape, recipe.family.needs, count=3)
    menu = recipe.family.menu(given)
    losses = []
    for rank in (1, 4, 16):
        ops = recipe.family.build(given, rank)
        (shared,) = {id(op.operators[2].weight) for op in ops}
        assert all(id(leaf) != shared for op in ops for leaf in list(op.parameters())[3:])
        stored = {id(leaf): leaf for op in ops for leaf in op.parameters()}
        counts = recipe.family.counts(given, rank)
        assert sum(b for _, b in counts) == sum(leaf.nbytes for leaf in stored.values())
        assert sum(n for n, _ in counts) == sum(leaf.numel() for leaf in stored.values())
        losses.append(sum(float((op.dense() - made.dense()).square().sum())
                          for op, made in zip(given.ops, ops, strict=True)))  # fmt: skip
        if rank in menu.sizes:
            assert menu.errors[menu.sizes.index(rank)] == pytest.approx(losses[-1])
    assert losses == sorted(losses, reverse=True)
    alone = unit(*shape, recipe.family.needs)
    (whole,) = recipe.family.build(alone, 1000)
    torch.testing.assert_close(whole.dense(), alone.ops[0].dense())


@law("shares_layers")
@shapes
def test_several_layers_get_the_one_weight_that_is_nearest_to_all(method, shape):
    family = method.recipe({}).family
    given = unit(*shape, family.needs, count=3)
    weights = torch.stack([op.dense() for op in given.ops])
    menu, ops = family.menu(given), family.build(given, 0)
    (shared,) = {id(leaf): leaf for op in ops for leaf in op.parameters()}.values()
    assert family.counts(given, 0) == [(shared.numel(), shared.nbytes), (0, 0), (0, 0)]
    assert (menu.sizes, menu.costs) == ([0, None], [shared.nbytes, 3 * shared.nbytes])
    assert menu.errors == pytest.approx([float((weights - ops[0].dense()).square().sum()), 0.0])
    torch.testing.assert_close(sum(weights - ops[0].dense()), torch.zeros(shape).double())
    alone = unit(*shape, family.needs)
    assert family.menu(alone).sizes == [None]
    assert torch.equal(family.build(alone, 0)[0].dense(), alone.ops[0].dense())


def _quarters(matrix):
    return [part for half in matrix.chunk(2) for part in half.chunk(2, dim=1)]


@law("optimal")
@shapes
def test_equals_eckart_young_in_its_own_metric(method, shape):
    recipe = method.recipe({})
    given = of(recipe, shape)
    metric, weight = measure(recipe, given), given.ops[0].dense()
    squares = spectrum(weight, metric)
    for rank in (3, 10):
        error = metric.loss(weight - recipe.family.build(given, rank)[0].dense())
        assert float(error) == pytest.approx(float(squares[rank:].sum()), rel=1e-6)


@law("optimal")
def test_single_precision_reaches_the_bound_within_a_thousandth(method):
    recipe = method.recipe({})
    given = of(recipe, (24, 16), torch.float32)
    metric, weight = measure(recipe, given), given.ops[0].dense()
    bound = spectrum(weight, metric)[6:].sum()
    error = metric.loss(weight.double() - recipe.family.build(given, 6)[0].dense().double())
    assert float(error) <= 1.001 * float(bound)


@law("compensates")
@shapes
def test_compensating_beats_what_it_compensates_the_more_the_higher_the_rank(method, shape):
    recipe = method.recipe({"bits": 2})
    given = of(recipe, shape)
    metric, weight = measure(recipe, given), given.ops[0].dense()

    def loss(rank):
        return float(metric.loss(weight - recipe.family.build(given, rank)[0].dense()))

    losses = [loss(rank) for rank in (0, 1, 4, min(shape))]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < losses[0]
    assert losses[-1] < 1e-6 * float(metric.loss(weight))


@law("quantises")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 100), (100, 24)], ids=["wide", "tall"])
def test_the_bytes_are_what_the_bits_say_and_known_beforehand(method, shape, dtype):
    for bits in (2, 3, 4, 8):
        recipe = method.recipe({"bits": bits, "group": 32})
        given = of(recipe, shape, dtype)
        for rank in (0, 3):
            (op,) = recipe.family.build(given, rank)
            assert recipe.family.counts(given, rank) == [(op.numel(), op.bytes())]
            (codes,) = [q for q in op.modules() if isinstance(q, Quantised) and q.shape == shape]
            assert codes.codes.numel() == shape[0] * -(-shape[1] * bits // 8)
        menu = recipe.family.menu(given)
        (bare,) = recipe.family.build(given, 0)
        assert (menu.sizes[0], menu.costs[0]) == (0, bare.bytes())


@law("quantises")
def test_more_bits_lose_less(method):
    losses = []
    for bits in (2, 3, 4, 8):
        recipe = method.recipe({"bits": bits})
        given = of(recipe, (24, 64))
        weight = given.ops[0].dense()
        error = weight - recipe.family.build(given, 0)[0].dense()
        losses.append(float(measure(recipe, given).loss(error)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-3 * losses[0]


@law("detaches")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4])
def test_detached_numbers_are_exact_and_counted_beside_the_codes(method, bits, dtype):
    recipe = method.recipe({"bits": bits, "group": 16})
    given = of(recipe, (24, 64), dtype)
    (site,), weight = given.sites, given.ops[0].dense()
    names = [name for name in ("outliers", "significant") if name in recipe.family.needs]
    places = torch.cat([site.stats[name] for name in names])
    assert recipe.family.menu(given).sizes == [len(places)]
    for count in range(len(places) + 1):
        (op,) = recipe.family.build(given, count)
        assert recipe.family.counts(given, count) == [(op.numel(), op.bytes())]
        made, kept = op.dense().flatten(), places[:count]
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(made[kept], weight.flatten()[kept], rtol=tolerance, atol=0)
    with pytest.raises(ValueError, match="Ask for at most so many"):
        recipe.family.build(given, len(places) + 1)


@law("rounds_inputs")
@shapes
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rounded_inputs_meet_codes_and_the_largest_ones_floats(method, shape, dtype):
    recipe = method.recipe({})
    given = of(recipe, shape, dtype)
    weight, largest = given.ops[0].dense(), given.sites[0].stats["abs_max"]
    (chosen,) = recipe.family.menu(given).sizes
    assert 0 < chosen == int((largest > 6).sum()) < shape[1]
    x = (torch.randn(3, 2, shape[1]) * largest / 3).to(dtype)
    for count in (0, 1, chosen, shape[1]):
        (op,) = recipe.family.build(given, count)
        assert recipe.family.counts(given, count) == [(op.numel(), op.bytes())]
        floats = torch.zeros(shape[1], dtype=torch.bool)
        floats[largest.topk(count).indices] = True
        rounded, coarse = x.double(), weight.double().clone()
        for part in (rounded, coarse):  # by rows, without the outliers
            rest = part * ~floats
            step = rest.abs().amax(-1, keepdim=True) / 127
            part[..., ~floats] = ((rest / step.clamp_min(1e-30)).round() * step)[..., ~floats]
        exact = dtype == torch.float64  # else scales are rounded, too
        matrix, output = (1e-12, 1e-9) if exact else (0.01, 0.2)
        torch.testing.assert_close(op.dense().double(), coarse, rtol=0, atol=matrix)
        torch.testing.assert_close(op(x).double(), rounded @ coarse.mT, rtol=1e-2, atol=output)


@law("beats_rounding")
def test_making_good_beats_rounding_each_number_by_itself(method):
    for bits in (2, 3, 4):
        recipe, plain = (m.recipe({"bits": bits, "group": 16}) for m in
                         (method, METHODS["round_to_nearest"]))  # fmt: skip
        given = of(recipe, (24, 64))
        metric, weight = measure(recipe, given), given.ops[0].dense()
        losses = [float(metric.loss(weight - r.family.build(given, 0)[0].dense()))
                  for r in (recipe, plain)]  # fmt: skip
        assert losses[0] < losses[1]


@law("decodes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_of_what_the_svd_leaves_and_the_bytes_are_told(method, dtype):
    recipe = method.recipe({"bits": 4, "steps": 8})
    given = of(recipe, (24, 18), dtype)
    weight = given.ops[0].dense()
    for rank in (0, 3):
        (op,) = recipe.family.build(given, rank)
        assert recipe.family.counts(given, rank) == [(op.numel(), op.bytes())]
    u, s, vh = torch.linalg.svd(weight.float())
    nearest = u[:, :3] * s[:3] @ vh[:3]
    torch.testing.assert_close(op.operators[1].dense().float(), nearest, rtol=0.02, atol=0.02)


@everyone
@shapes
def test_what_trains_settles_as_the_same_matrix_in_the_bytes_that_were_told(method, shape):
    recipe = configured(method)
    given = of(recipe, shape, torch.float32)
    chosen = size(recipe, given)
    (op,) = recipe.family.build(given, chosen)
    before = op.dense()
    settled = settle(op)
    assert is_settled(settled)
    assert torch.equal(settled.dense(), before)
    assert recipe.family.counts(given, chosen) == [(settled.numel(), settled.bytes())]


def test_onebits_scales_are_the_best_for_its_signs_taken_from_the_magnitudes():
    recipe = METHODS["onebit"].recipe({})
    given = of(recipe, (24, 16))
    weight = given.ops[0].dense()
    (op,) = recipe.family.build(given, 0)
    u, s, vh = torch.linalg.svd(weight.abs())
    nearest = s[0] * torch.outer(u[:, 0], vh[0]).abs()
    torch.testing.assert_close(op.dense(), nearest * weight.sign())
    one_scale = quantise_signs(weight, 16).dense()  # of OneBit's kind, with equal columns
    assert (op.dense() - weight).norm() < (one_scale - weight).norm()


def test_littlebit_equals_its_own_recipe_done_literally():
    recipe = METHODS["littlebit"].recipe({"bits": None})
    given = of(recipe, (24, 16))
    weight = given.ops[0].dense()
    total = torch.zeros_like(weight)
    for _ in range(2):
        u, s, vh = torch.linalg.svd(weight - total, full_matrices=False)
        left, right = u[:, :8] * s[:8].sqrt(), s[:8, None].sqrt() * vh[:8]
        parts = []
        for factor in (left, right):
            a, d, b = torch.linalg.svd(factor.abs())
            parts.append(d[0] * torch.outer(a[:, 0], b[0]).abs() * factor.sign())
        total = total + parts[0] @ parts[1]
    torch.testing.assert_close(recipe.family.build(given, 8)[0].dense(), total)


def test_littlebits_width_is_the_papers():
    for bits, residual, wanted in ((1.0, True, 1000), (0.1, True, 80), (1.0, False, 2024)):
        recipe = METHODS["littlebit"].recipe({"bits": bits, "residual": residual})
        site, op = (
            Site("s", "q", 0, (4096, 4096), False, "linear"),
            Dense(torch.empty(4096, 4096, device="meta")),
        )
        assert recipe.family.menu(Unit([site], [op])).sizes == [wanted]


ALTERNATING = [m for m in COMPRESSES if "rounds" in m.parameters]


@pytest.mark.parametrize("method", ALTERNATING, ids=[m.key for m in ALTERNATING])
def test_more_rounds_fit_better_and_never_worse(method):
    losses = []
    for rounds in (1, 2, 8):
        coarse = {"bits": 2, "group": 16} if "bits" in method.parameters else {}
        recipe = method.recipe({**coarse, "rounds": rounds})
        given = of(recipe, (24, 64))
        error = given.ops[0].dense() - recipe.family.build(given, 8)[0].dense()
        losses.append(float(measure(recipe, given).loss(error)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_awq_equals_its_own_search_done_literally():
    recipe = METHODS["awq"].recipe({"bits": 3, "group": 16, "points": 4})
    given = of(recipe, (24, 64))
    weight, stats = given.ops[0].dense(), given.sites[0].stats
    tried = []
    for alpha in (0, 0.25, 0.5, 0.75):
        s = stats["abs_mean"] ** alpha
        s = s / (s.max() * s.min()).sqrt()
        tried.append(quantise_uniform(weight * s, 3, 16, symmetric=False).dense() / s)

    def error(made):
        return float(((weight - made) @ stats["gram"] * (weight - made)).sum())

    best = min(tried, key=error)
    assert error(best) < error(tried[0])
    torch.testing.assert_close(recipe.family.build(given, 0)[0].dense(), best)


def test_svdquant_equals_its_own_recipe_done_literally():
    recipe = METHODS["svdquant"].recipe({"bits": 3, "group": 16, "points": 2})
    given = of(recipe, (24, 64))
    weight, stats = given.ops[0].dense(), given.sites[0].stats
    tried = []
    for alpha in (0, 0.5, 1):
        s = stats["abs_max"] ** alpha / weight.abs().amax(0) ** (1 - alpha)
        s = s / (s.max() * s.min()).sqrt()
        u, d, vh = torch.linalg.svd(weight * s, full_matrices=False)
        low = u[:, :4] * d[:4] @ vh[:4]
        rest = quantise_uniform(weight * s - low, 3, 16, symmetric=False).dense()
        tried.append((low + rest) / s)

    def error(made):
        return float(((weight - made) @ stats["gram"] * (weight - made)).sum())

    best = min(tried, key=error)
    torch.testing.assert_close(recipe.family.build(given, 4)[0].dense(), best)


def test_loftq_equals_its_own_algorithm_done_literally():
    recipe = METHODS["loftq"].recipe({"bits": 2, "group": 16, "rounds": 2})
    given = of(recipe, (24, 64))
    weight = given.ops[0].dense()
    low, tried = torch.zeros_like(weight), []
    for _ in range(2):
        coarse = quantise_codebook(weight - low, normal_float(2), 16).dense()
        u, s, vh = torch.linalg.svd(weight - coarse, full_matrices=False)
        low = u[:, :8] * s[:8] @ vh[:8]
        tried.append(coarse + low)
    best = min(tried, key=lambda made: float((weight - made).norm()))
    torch.testing.assert_close(recipe.family.build(given, 8)[0].dense(), best)


SAME_MINIMISER = [("svd_llm", "svd_llm_v2"), ("afm", "lord"), ("afm", "rom"), ("svd", "welore"),
                  ("svd", "pela"), ("svd_llm", "basis_sharing")]  # fmt: skip


@pytest.mark.parametrize("pair", SAME_MINIMISER, ids="=".join)
@shapes
def test_methods_that_are_the_same_minimiser_agree(pair, shape):
    first, second = (METHODS[key].recipe({}) for key in pair)
    a, b = (r.family.build(of(r, shape), 6)[0].dense() for r in (first, second))
    torch.testing.assert_close(a, b)


@shapes
def test_svd_llm_equals_its_own_recipe_done_literally(shape):
    recipe = METHODS["svd_llm"].recipe({})
    given = of(recipe, shape)
    weight, gram = given.ops[0].dense(), given.sites[0].stats["gram"]
    root = torch.linalg.cholesky(gram)
    u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)
    literal = u[:, :6] * s[:6] @ vh[:6] @ torch.linalg.inv(root)
    torch.testing.assert_close(recipe.family.build(given, 6)[0].dense(), literal)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_fwsvd_equals_its_own_recipe_done_literally(axis):
    recipe = METHODS["fwsvd"].recipe({"axis": axis})
    given = of(recipe, (24, 16))
    weight, fisher = given.ops[0].dense(), given.sites[0].stats["fisher"]
    if axis == "in":
        weight, fisher = weight.mT, fisher.mT
    d = fisher.sum(1).sqrt()[:, None]
    u, s, vh = torch.linalg.svd(d * weight, full_matrices=False)
    literal = (u[:, :6] / d) * s[:6] @ vh[:6]
    built = recipe.family.build(given, 6)[0].dense()
    torch.testing.assert_close(built if axis == "out" else built.mT, literal)


def test_asvd_equals_its_own_recipe_done_literally():
    recipe = METHODS["asvd"].recipe({})
    given = of(recipe, (24, 16))
    scale = given.sites[0].stats["abs_mean"].sqrt()
    u, s, vh = torch.linalg.svd(given.ops[0].dense() * scale, full_matrices=False)
    literal = u[:, :6] * s[:6] @ vh[:6] / scale
    torch.testing.assert_close(recipe.family.build(given, 6)[0].dense(), literal)


def test_kfac_svd_equals_its_own_recipe_with_the_root_on_the_right_side():
    recipe = METHODS["kfac_svd"].recipe({})
    given = of(recipe, (24, 16))
    stats, weight = given.sites[0].stats, given.ops[0].dense()

    def shrunk_root(moment, share):
        mean = moment.diagonal().mean() * torch.eye(len(moment)).double()
        return torch.linalg.cholesky((1 - share) * moment + share * mean)

    left, right = shrunk_root(stats["output_gram"], 0.3), shrunk_root(stats["gram"], 0.1)
    u, s, vh = torch.linalg.svd(left.mT @ weight @ right, full_matrices=False)
    middle = u[:, :6] * s[:6] @ vh[:6]
    literal = torch.linalg.inv(left.mT) @ middle @ torch.linalg.inv(right)
    torch.testing.assert_close(recipe.family.build(given, 6)[0].dense(), literal)


def test_utilized_rank_projects_on_the_subspaces_that_the_data_uses():
    recipe = METHODS["utilized_rank"].recipe({})
    given = of(recipe, (24, 16))
    weight, gram = given.ops[0].dense(), given.sites[0].stats["gram"]
    for rank in (3, 9):
        built = recipe.family.build(given, rank)[0].dense()
        vectors = torch.linalg.eigh(weight @ gram @ weight.mT).eigenvectors
        outside = vectors[:, : 24 - 16]  # never reached by W x
        assert (outside.mT @ built).norm() < 1e-6
        assert torch.linalg.matrix_rank(built) <= rank


def test_basis_sharing_groups_consecutive_layers_of_the_sharing_roles():
    recipe = METHODS["basis_sharing"].recipe({"layers": 2})
    names = []
    sites = []
    for role in ("q", "o"):
        sites += unit(16, 16, frozenset(), count=3, role=role).sites
    for i, site in enumerate(sites):
        site.name = f"{site.role}{i % 3}"
    names = [[s.name for s in group] for group in recipe.group(sites)]
    assert names == [["q0", "q1"], ["q2"], ["o0"], ["o1"], ["o2"]]


def test_basis_sharing_shares_the_factor_and_stays_lossless_at_full_rank():
    recipe = METHODS["basis_sharing"].recipe({})
    pair = unit(16, 24, recipe.family.needs, count=2)
    first, second = recipe.family.build(pair, 24)
    assert first.a is second.a
    for op, old in zip((first, second), pair.ops, strict=True):
        torch.testing.assert_close(op.dense(), old.dense())


def test_eora_repairs_an_earlier_compression_when_the_original_is_known():
    recipe = METHODS["eora"].recipe({})
    given = of(recipe, (24, 16))
    coarse = METHODS["svd"].recipe({}).family.build(given, 3)
    site, original = given.sites[0], given.ops[0]
    site.pool["originals"] = {site.name: original}
    metric = measure(recipe, given)
    (repaired,) = recipe.family.build(Unit([site], coarse), 4)
    lost = original.dense() - coarse[0].dense()
    bound = spectrum(lost, metric)[4:].sum()
    error = metric.loss(original.dense() - repaired.dense())
    assert float(error) == pytest.approx(float(bound), rel=1e-6)


def test_the_laws_speak_of_registered_methods():
    speaking = partial(filter, None)
    assert all(key in METHODS for pair in SAME_MINIMISER for key in speaking(pair))


def test_a_dictionary_of_an_embedding_weighs_rows_by_how_often_they_are_read():
    recipe = METHODS["compot"].recipe({})
    given = of(recipe, (24, 16))
    site, weight = given.sites[0], given.ops[0].dense()
    counts = torch.ones(24, dtype=torch.float64)
    counts[:6] = 1e6
    errors = []
    for seen in (torch.ones_like(counts), counts):
        site.stats = {"row_counts": seen}
        error = weight - recipe.family.build(given, 6)[0].dense()
        errors.append(float(error[:6].norm()))
    assert errors[1] < 0.9 * errors[0]
