"""Fewer inner channels: which ones stay, what their reader becomes, what it costs."""

import pytest
import torch

from corank.metrics import activation_scale, second_moment
from corank.models import Heads, Site
from corank.operators import Dense, transpose
from corank.operators.counting import count_each
from corank.registry import METHODS
from corank.rewrites import Unit, by_leverage, by_magnitude, narrowing, shared_values
from corank.rewrites.cuttable import layout_of

WIDTH, INPUTS, OUTPUTS = 20, 12, 10
PAIRS = ((0, 2), (1, 3))  # what rotary embeddings turn together in a head of 4


def site(name, role, out, into, **stats):
    heads = stats.pop("heads", None)
    made = Site(f"layers.0.{name}", role, 0, (out, into), False, "linear", heads=heads)
    made.stats |= stats
    return made


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def moment(x):
    return x.mT @ x / len(x)


@pytest.fixture
def mlp():
    """gate, up and down with the inner activations that they really have."""
    x = draws(200, INPUTS, seed=1)
    gate, up, down = draws(WIDTH, INPUTS, seed=2), draws(WIDTH, INPUTS, seed=3), draws(10, WIDTH)
    inner = torch.nn.functional.silu(x @ gate.mT) * (x @ up.mT)
    given = {"gram": moment(x), "square_mean": x.square().mean(0)}
    read = {"gram": moment(inner), "square_mean": inner.square().mean(0)}
    sites = [
        site("mlp.gate_proj", "gate", WIDTH, INPUTS, **given),
        site("mlp.up_proj", "up", WIDTH, INPUTS, **given),
        site("mlp.down_proj", "down", OUTPUTS, WIDTH, **read),
    ]
    return Unit(sites, [Dense(w) for w in (gate, up, down)]), inner


def kept_channels(op):
    """The rows that a maker kept, most important first."""
    return op.operators[0].operator.index.long()


def test_the_refitted_reader_is_the_least_squares_one(mlp):
    unit, inner = mlp
    family = METHODS["modegpt"].recipe({}).family
    wanted = inner @ unit.ops[2].dense().mT
    for size in (5, 12):
        gate, up, down = family.build(unit, size)
        kept = kept_channels(gate)
        solution = torch.linalg.lstsq(inner[:, kept], wanted).solution
        torch.testing.assert_close(down.operators[0].dense(), solution.mT, rtol=1e-3, atol=1e-4)
        error = float((wanted - inner @ down.dense().mT).square().sum() / len(inner))
        menu = family.menu(unit)
        assert menu.errors[menu.sizes.index(size)] == pytest.approx(error, rel=1e-3)
        sliced = inner[:, kept] @ unit.ops[2].dense()[:, kept].mT
        assert error < 0.9 * float((wanted - sliced).square().sum() / len(inner))
        for op, old in ((gate, unit.ops[0]), (up, unit.ops[1])):
            torch.testing.assert_close(op.dense()[kept], old.dense()[kept], rtol=0, atol=0)
            assert (op.dense() != 0).any(1).sum() == size


def test_the_most_leverage_is_kept_and_slicing_costs_what_the_menu_says(mlp):
    unit, inner = mlp
    gram, ridge = moment(inner), 1e-2
    floor = ridge * gram.diagonal().mean() * torch.eye(WIDTH).double()
    scores = (gram @ torch.linalg.inv(gram + floor)).diagonal()
    family = METHODS["uniql"].recipe({"ridge": ridge}).family
    every = scores.argsort(descending=True)
    for size in (4, 9):
        gate, _, down = family.build(unit, size)
        assert kept_channels(gate).tolist() == every[:size].tolist()
        torch.testing.assert_close(
            down.operators[0].dense(), unit.ops[2].dense()[:, every[:size]], rtol=0, atol=0
        )
        change = inner @ (unit.ops[2].dense() - down.dense()).mT
        menu = family.menu(unit)
        assert menu.errors[menu.sizes.index(size)] == pytest.approx(
            float(change.square().sum() / len(inner))
        )


def test_lorap_sums_the_norms_and_keeps_the_least_important_channels_too(mlp):
    unit, _ = mlp
    recipe = METHODS["lorap"].recipe({"least": 0.1})
    rms = [s.stats["square_mean"].sqrt() for s in unit.sites]
    gate, up, down = (op.dense().abs() for op in unit.ops)
    scores = (gate * rms[0]).norm(dim=1) + (up * rms[1]).norm(dim=1) + (down * rms[2]).norm(dim=0)
    order = scores.argsort(descending=True)
    built = recipe.family.build(unit, 7)
    assert set(kept_channels(built[0]).tolist()) == {*order[:5].tolist(), *order[-2:].tolist()}
    gone = order[5:-2]
    menu = recipe.family.menu(unit)
    assert menu.errors[menu.sizes.index(7)] == pytest.approx(
        float((unit.ops[2].dense()[:, gone] * rms[2][gone]).square().sum())
    )


@pytest.mark.parametrize("key", ["modegpt", "uniql", "lorap"])
def test_a_module_stores_what_its_menu_says_with_one_index(mlp, key):
    unit, _ = mlp
    family = METHODS[key].recipe({}).family
    built = family.build(unit, 6)
    assert family.counts(unit, 6) == count_each(built)
    menu = family.menu(unit)
    assert menu.costs[menu.sizes.index(6)] == 6 * (2 * INPUTS + OUTPUTS) * 8 + 6 * 4
    whole = family.build(unit, WIDTH)
    for op, old in zip(whole, unit.ops, strict=True):
        torch.testing.assert_close(op.dense(), old.dense(), rtol=0, atol=0)


def test_a_fused_gate_and_up_lose_both_rows_of_a_channel(mlp):
    unit, _ = mlp
    joined = torch.cat([op.dense() for op in unit.ops[:2]])
    stats = dict(unit.sites[0].stats)
    fused = site("mlp.gate_up_proj", "gate_up", 2 * WIDTH, INPUTS, **stats)
    pair = Unit([fused, unit.sites[2]], [Dense(joined), unit.ops[2]])
    family = METHODS["modegpt"].recipe({}).family
    (both, down), (gate, up, other) = family.build(pair, 6), family.build(unit, 6)
    torch.testing.assert_close(both.dense(), torch.cat([gate.dense(), up.dense()]))
    torch.testing.assert_close(down.dense(), other.dense())
    assert family.counts(pair, 6) == count_each([both, down])


def attention(groups, heads=2, size=4, units=PAIRS):
    """q, k, v and o of `heads` heads of keys, each met by `groups` heads of queries."""
    x, kv = draws(300, INPUTS, seed=5) @ draws(INPUTS, INPUTS, seed=6), heads * size
    known = Heads(size, units)
    shapes = {"q": (groups * kv, INPUTS), "k": (kv, INPUTS), "v": (kv, INPUTS),
              "o": (OUTPUTS, groups * kv)}  # fmt: skip
    sites = {
        role: site(f"self_attn.{role}_proj", role, *shape, gram=moment(x), heads=known)
        for role, shape in shapes.items()
    }
    ops = {role: Dense(draws(*shape, seed=i)) for i, (role, shape) in enumerate(shapes.items())}
    return x, sites, ops


@pytest.mark.parametrize("groups", [1, 3])
def test_pairs_of_queries_and_keys_go_by_what_their_products_owe_to_them(groups):
    x, sites, ops = attention(groups)
    unit = Unit([sites["q"], sites["k"]], [ops["q"], ops["k"]])
    family = METHODS["modegpt"].recipe({}).family
    q = (x @ ops["q"].dense().mT).view(len(x), 2, groups, 4)
    k = (x @ ops["k"].dense().mT).view(len(x), 2, 1, 4)
    squares = [part.square().mean(0).view(2, -1, 2, 2).sum(2) for part in (q, k)]  # of a pair
    scores = (squares[0] * squares[1]).sum(1) / 2  # (heads, pairs)
    best = scores.argmax(1)
    new_q, new_k = family.build(unit, 4)  # one pair in each of the two heads of keys
    for head in range(2):
        pair = torch.tensor(PAIRS[best[head]])
        rows = (new_k.dense() != 0).any(1).view(2, 4)[head].nonzero().flatten()
        assert rows.tolist() == pair.tolist()
        rows = (new_q.dense() != 0).any(1).view(2, groups, 4)[head]
        assert all(one.nonzero().flatten().tolist() == pair.tolist() for one in rows)
    menu = family.menu(unit)
    assert menu.sizes == [4, None]
    assert menu.errors[0] == pytest.approx(float(scores.min(1).values.sum()))
    assert family.counts(unit, 4) == count_each([new_q, new_k])


def test_dimensions_that_are_normalised_or_unknown_stay():
    family = METHODS["modegpt"].recipe({}).family
    _, sites, ops = attention(1, units=None)
    unit = Unit([sites["q"], sites["k"]], [ops["q"], ops["k"]])
    assert layout_of(unit) is None
    assert family.menu(unit).sizes == [None]
    assert family.counts(unit, None) == [(op.numel(), op.bytes()) for op in unit.ops]
    with pytest.raises(ValueError, match="no inner channels"):
        family.build(unit, 4)


@pytest.mark.parametrize("groups", [1, 3])
def test_values_and_outputs_are_the_best_pair_of_that_rank_in_every_head(groups):
    _, sites, ops = attention(groups)
    unit = Unit([sites["v"], sites["o"]], [ops["v"], ops["o"]])
    family = METHODS["modegpt"].recipe({}).family
    root = torch.linalg.cholesky(sites["v"].stats["gram"])
    for rank in (1, 3, 4):
        v, o = (op.dense() for op in family.build(unit, 2 * rank))
        lost = 0.0
        for head in range(2):
            rows = slice(4 * head, 4 * head + 4)
            columns = [slice(4 * (groups * head + g), 4 * (groups * head + g) + 4)
                       for g in range(groups)]  # fmt: skip
            made = torch.cat([o[:, c] @ v[rows] for c in columns])
            whole = torch.cat([ops["o"].dense()[:, c] @ ops["v"].dense()[rows] for c in columns])
            u, s, vh = torch.linalg.svd(whole @ root, full_matrices=False)
            best = u[:, :rank] * s[:rank] @ vh[:rank] @ torch.linalg.inv(root)
            torch.testing.assert_close(made, best)
            lost += float(s[rank:].square().sum())
        kept = (v != 0).any(1)
        own = ops["v"].dense()[kept]  # what stays is near what it was
        assert (v[kept] - own).norm() < (0.8 if rank < 4 else 1e-9) * own.norm()
        menu = family.menu(unit)
        if 2 * rank in menu.sizes:
            assert menu.errors[menu.sizes.index(2 * rank)] == pytest.approx(lost)
        built = family.build(unit, 2 * rank)
        assert family.counts(unit, 2 * rank) == count_each(built)


def test_uniqls_values_are_the_principal_directions_one_after_another():
    _, sites, ops = attention(2)
    unit = Unit([sites["v"], sites["o"]], [ops["v"], ops["o"]])
    family = METHODS["uniql"].recipe({}).family
    small, large = family.build(unit, 4), family.build(unit, 6)
    for few, many in zip(small, large, strict=True):  # what is kept first does not depend on more
        few, many = (op if op.shape[0] == 8 else transpose(op) for op in (few, many))
        first, whole = few.operators[1].dense(), many.operators[1].dense()
        torch.testing.assert_close(first, whole[: len(first)])
    v, o = (op.dense() for op in large)
    rows = ops["v"].dense()[:4]
    covariance = rows @ sites["v"].stats["gram"] @ rows.mT
    basis = torch.linalg.eigh(covariance).eigenvectors[:, 1:]
    torch.testing.assert_close(o[:, :4] @ v[:4], ops["o"].dense()[:, :4] @ basis @ basis.mT @ rows)
    size = (v[:4] @ sites["v"].stats["gram"] @ v[:4].mT).diagonal()
    torch.testing.assert_close(size[:3], torch.linalg.eigvalsh(covariance).flip(0)[:3])
    menu = family.menu(unit)
    lost = 0.0
    for head in range(2):
        for g in range(2):
            c, r = slice(8 * head + 4 * g, 8 * head + 4 * g + 4), slice(4 * head, 4 * head + 4)
            change = o[:, c] @ v[r] - ops["o"].dense()[:, c] @ ops["v"].dense()[r]
            lost += float((change @ sites["v"].stats["gram"] * change).sum())
    assert menu.errors[menu.sizes.index(6)] == pytest.approx(lost)


def test_a_bias_of_the_values_moves_into_the_outputs():
    _, sites, ops = attention(3)
    unit = Unit([sites["v"], sites["o"]], [ops["v"], ops["o"]])
    alone = narrowing(second_moment(), by_magnitude(second_moment()))
    family = shared_values(second_moment(), alone)
    bias, after = draws(8, seed=8), draws(OUTPUTS, seed=9)
    built = family.build(unit, 8)
    for before in (after, None):
        (none, moved), error = family.jointly(unit, built, [bias, before])
        read = bias.view(2, 1, 4).expand(2, 3, 4).flatten()
        wanted = ops["o"].dense() @ read + (0 if before is None else before)
        torch.testing.assert_close(moved, wanted)
        assert error < 1e-12
        assert not none.any()
    assert family.jointly(unit, built, [None, after])[0] == [None, after]
    lone = Unit([sites["v"]], [ops["v"]])
    assert family.jointly(lone, family.build(lone, 2), [bias]) is None


def test_the_joint_error_is_that_of_the_outputs():
    x, sites, ops = attention(2)
    unit = Unit([sites["v"], sites["o"]], [ops["v"], ops["o"]])
    family = METHODS["modegpt"].recipe({}).family
    built = family.build(unit, 4)
    _, error = family.jointly(unit, built, [None, None])
    lost = total = 0.0
    for head in range(4):  # each head of queries by itself
        c, r = slice(4 * head, 4 * head + 4), slice(4 * (head // 2), 4 * (head // 2) + 4)
        before = x @ (ops["o"].dense()[:, c] @ ops["v"].dense()[r]).mT
        now = x @ (built[1].dense()[:, c] @ built[0].dense()[r]).mT
        lost += float((before - now).square().sum())
        total += float(before.square().sum())
    assert error == pytest.approx(lost / total)


def test_heads_that_do_not_divide_and_sizes_between_steps_are_refused():
    _, sites, ops = attention(1)
    sites["k"].heads = Heads(3, None)
    family = METHODS["modegpt"].recipe({}).family
    assert layout_of(Unit([sites["q"], sites["k"]], [ops["q"], ops["k"]])) is None
    sites["k"].heads = Heads(3, ((0,), (1,), (2,)))
    with pytest.raises(ValueError, match="heads of 3 do not divide its 8 outputs"):
        family.menu(Unit([sites["q"], sites["k"]], [ops["q"], ops["k"]]))
    with pytest.raises(ValueError, match="a multiple of 2, at most 8"):
        family.build(Unit([sites["v"], sites["o"]], [ops["v"], ops["o"]]), 3)


@pytest.mark.parametrize("key", ["modegpt", "uniql"])
def test_a_channel_that_is_huge_on_rare_tokens_stays(key):
    """Others may tell it, but made of them it would be noise on all other tokens."""
    inner = draws(2000, WIDTH)
    inner[:20] = 30 * draws(1, WIDTH, seed=1).sign()
    inner[:20, 0], inner[20:, 0] = 100.0, 0.01 * inner[20:, 0]
    down = draws(OUTPUTS, WIDTH, seed=2)
    lone = Unit([site("mlp.down_proj", "down", OUTPUTS, WIDTH, gram=moment(inner))], [Dense(down)])
    (op,) = METHODS[key].recipe({}).family.build(lone, WIDTH // 2)
    ordinary = inner[20:]
    lost = (ordinary @ (down - op.dense()).mT).square().sum()
    assert lost < 0.7 * (ordinary @ down.mT).square().sum()
    assert op.dense()[:, 0].any()


def test_a_leverage_needs_a_ridge_and_a_share_is_a_share():
    for key in ("modegpt", "uniql"):
        with pytest.raises(ValueError, match="ridge above 0"):
            METHODS[key].recipe({"ridge": 0.0})
    with pytest.raises(ValueError, match="is outside"):
        METHODS["lorap"].recipe({"least": 1.0})


def test_a_lone_reader_takes_its_inputs_from_those_that_say_most():
    x = draws(400, 6, seed=3)
    x = torch.cat([x, x @ draws(6, 6, seed=4)], 1) + 1e-3 * draws(400, 12, seed=7)
    weight = draws(9, 12, seed=5)
    lone = Unit([site("pooler.dense", "other", 9, 12, gram=moment(x))], [Dense(weight)])
    family = narrowing(second_moment(), by_leverage(second_moment(), 1e-4), refit=True)
    (op,) = family.build(lone, 7)
    y = x @ weight.mT
    assert (y - op(x)).norm() < 0.1 * y.norm()
    diagonal = narrowing(activation_scale(), by_magnitude(activation_scale()))
    lone.sites[0].stats["abs_mean"] = x.abs().mean(0)
    (sliced,) = diagonal.build(lone, 7)
    assert (y - op(x)).norm() < (y - sliced(x)).norm()
