"""Products in few bits: every matrix in the metric of what it reads, and what that stores."""

import copy

import pytest
import torch

import corank
from corank.errors import SiteError
from corank.metrics import euclidean, second_moment
from corank.models import Site, find_sites, read
from corank.operators import (
    BlockDiagonal,
    BlockRows,
    Dense,
    Diagonal,
    LowRank,
    Polyadic,
    Product,
    Quantised,
    RowSparse,
    Scaled,
    Sum,
    TensorTrain,
    quantise_uniform,
)
from corank.quantizers import (
    Quantizer,
    error_feedback,
    feedback,
    greedy_paths,
    round_to_nearest,
    to_normal_float,
    vector_codebooks,
)
from corank.registry import METHODS
from corank.rewrites import (
    Unit,
    compensation,
    count_factorwise,
    factorwise,
    quantisation,
    quantised_factors,
    skeleton,
    truncation,
)
from tests.methods.stats import unit as made_up
from tests.verbs.models import tiny_llama, tokens

OUT, IN, RANK = 12, 20, 6
GPTQ = error_feedback(3, 8)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs():
    return normal(200, IN) @ normal(IN, IN, seed=1) + 0.5


def site(x, **more):
    stats = {"gram": x.mT @ x / len(x), "mean": x.mean(0), "square_mean": x.square().mean(0)}
    return Site("layer", "q", 0, (OUT, x.shape[1]), False, "linear", stats=stats | more)


def low_rank():
    return LowRank(normal(OUT, RANK, seed=2), normal(RANK, IN, seed=3))


def quantise(op, x, quantizer=GPTQ, **more):
    return factorwise(quantizer, Unit([site(x, **more)], [op]))[0]


def test_the_left_factor_is_gptq_on_the_latents_that_it_reads():
    x, op = inputs(), low_rank()
    made = quantise(op, x)
    left, right = made.operators
    assert torch.equal(right.dense(), GPTQ(op.a.detach(), site(x)).dense())
    z = x @ right.dense().mT  # what stands before the left factor, row by row
    torch.testing.assert_close(left.dense(), GPTQ(op.b.detach(), site(z)).dense())


def test_its_error_is_lower_at_the_outputs_than_in_any_wrong_metric():
    x, op = inputs(), low_rank()
    made = quantise(op, x)
    z = made.operators[1](x)

    def lost(left):
        return float((z @ (op.b - left).mT).square().sum())

    plain = round_to_nearest(3, 8)(op.b.detach(), None).dense()
    of_x = GPTQ(op.b.detach(), site(x[:, :RANK])).dense()
    assert lost(made.operators[0].dense()) < min(lost(plain), lost(of_x))


def test_every_matrix_of_a_product_reads_what_the_one_before_gives():
    x, seen = inputs(), []

    def spy(weight, given):
        seen.append((weight, given))
        return quantise_uniform(weight, 4, 8)

    parts = [normal(OUT, 5, seed=4), normal(5, seed=5), normal(5, 7, seed=6), normal(7, IN, seed=7)]
    a, d, b, c = parts
    op = Product(Dense(a), Diagonal(d), Scaled(Dense(b), 2.0), Dense(c))
    made = quantise(op, x, Quantizer(spy, GPTQ.counts, frozenset({"gram", "mean"})))
    assert torch.equal(made.operators[1].dense(), d.diag())
    assert all(torch.equal(w, part) for (w, _), part in zip(seen, (c, b, a), strict=True))
    z = x
    for (weight, given), places in zip(seen, ([3], [2, 1], [0]), strict=True):
        assert given.shape == weight.shape
        torch.testing.assert_close(given.stats["gram"], z.mT @ z / len(z))
        torch.testing.assert_close(given.stats["mean"], z.mean(0))
        torch.testing.assert_close(given.stats["square_mean"], z.square().mean(0))
        for place in places:
            z = made.operators[place](z)


def test_terms_of_a_sum_read_the_same_and_gates_are_folded_in():
    x, low = inputs(), low_rank()
    gate = torch.linspace(0.5, 2, RANK, dtype=torch.float64)
    mask = torch.tensor([True] * (RANK - 1) + [False])
    gated = LowRank(low.b, low.a, gate, mask)
    made = quantise(Sum(Dense(normal(OUT, IN, seed=8)), gated), x)
    first, *rest = made.operators
    assert torch.equal(first.dense(), GPTQ(normal(OUT, IN, seed=8), site(x)).dense())
    folded = quantise(LowRank(low.b, low.a * (gate * mask)[:, None]), x)
    assert torch.equal(Sum(*rest).dense(), folded.dense())


def test_rows_of_blocks_read_the_same():
    x, first, second = inputs(), normal(5, 6, seed=4), normal(3, 6, seed=5)
    op = Product(BlockRows(Dense(first), Dense(second)), Dense(normal(6, IN)))
    made = quantise(op, x)
    assert count_factorwise(GPTQ, Unit([site(x)], [op])) == [(made.numel(), made.bytes())]
    z = x @ made.operators[1].dense().mT
    for found, matrix in zip(made.operators[0].operators, (first, second), strict=True):
        torch.testing.assert_close(found.dense(), GPTQ(matrix, site(z)).dense())


def test_blocks_read_their_own_part_of_the_input():
    x, blocks, mixed = inputs(), normal(4, 3, 5, seed=4), normal(IN, IN, seed=5)
    made = quantise(Product(BlockDiagonal(blocks), Dense(mixed)), x)
    z = x @ made.operators[1].dense().mT
    for i, block in enumerate(blocks):
        part = slice(5 * i, 5 * i + 5)
        expected = GPTQ(block, site(z[:, part])).dense()
        torch.testing.assert_close(made.operators[0].dense()[3 * i : 3 * i + 3, part], expected)
    assert made.operators[0].bytes() < 0.5 * BlockDiagonal(blocks).bytes()


def test_blocks_that_occur_twice_are_quantised_once():
    one = BlockDiagonal(normal(5, 4, 4))
    made = quantise(Sum(one, Scaled(one, 0.5)), inputs())
    assert made.operators[0] is made.operators[1].operator
    counted = count_factorwise(GPTQ, Unit([site(inputs())], [Sum(one, Scaled(one, 0.5))]))
    assert counted == [(made.numel(), made.bytes())]


def test_blocks_whose_codes_spare_nothing_stay_as_they_are():
    op = Product(BlockDiagonal(normal(IN, 2, 1, dtype=torch.float16)), Dense(normal(IN, IN)))
    unit = Unit([site(inputs())], [op])
    made = quantise(op, inputs())
    assert made.operators[0] is op.operators[0]
    assert count_factorwise(GPTQ, unit) == [(made.numel(), made.bytes())]


def test_cores_of_tensor_networks_are_rounded_each_by_itself():
    middle, last = Dense(normal(3 * 2, 5 * 4)), Dense(normal(4 * 3, 4, seed=1))
    train = TensorTrain(Dense(normal(2, 3)[:, :3]), middle, last, rows=(2, 2, 3), columns=(1, 5, 4))
    network = Polyadic(Dense(normal(OUT, 8)), Dense(normal(5, 8, seed=1)), Dense(normal(4, 8)))
    for quantizer in (GPTQ, round_to_nearest(3, 4), greedy_paths(3, 4)):
        unit = Unit([site(inputs())] * 2, [train, Sum(network, Scaled(network, 0.5))])
        made = factorwise(quantizer, unit)
        for op, found in zip((train, network), (made[0], made[1].operators[0]), strict=True):
            for core, coded in zip(op.operators, found.operators, strict=True):
                white = site(torch.eye(core.shape[1], dtype=torch.float64))
                expected = quantizer(core.weight.detach(), white).dense()
                torch.testing.assert_close(coded.dense(), expected)
            assert type(found) is type(op)
            assert found.bytes() < 0.5 * op.bytes()
        assert count_factorwise(quantizer, unit) == [(op.numel(), op.bytes()) for op in made]


def test_cores_whose_codes_spare_nothing_stay_and_are_refused_alone():
    thin = Polyadic(*(Dense(normal(n, 1, dtype=torch.float16)) for n in (OUT, 5, 4)))
    mixed = Product(thin, Dense(normal(IN, IN)))
    assert quantise(mixed, inputs()).operators[0].operators[0] is thin.operators[0]
    with pytest.raises(SiteError, match="no matrix of floats"):
        quantise(thin, inputs())


def test_sparse_rows_are_rounded_each_on_the_moment_of_what_it_reads(monkeypatch):
    x, values = inputs(), normal(OUT, 8, seed=4)
    columns = torch.stack([torch.randperm(IN)[:8].sort().values for _ in range(OUT)]).byte()
    one = RowSparse(values, columns, IN)
    op = Sum(one, Scaled(one, 0.5))
    unit = Unit([site(x)], [Product(Dense(normal(OUT, OUT)), op)])
    for quantizer in (GPTQ, greedy_paths(3, 4), round_to_nearest(3, 8)):
        made = factorwise(quantizer, unit)[0].operators[1]
        sparse = made.operators[0]
        for row, places, found in zip(values, columns.long(), sparse.dense(), strict=True):
            expected = quantizer(row[None], site(x[:, places])).dense()[0]
            torch.testing.assert_close(found[places], expected)
        assert torch.equal(sparse.columns, columns)
        assert made.operators[1].operator.values is sparse.values
    monkeypatch.setattr(feedback, "_AT_ONCE", 5 * 8**2)
    again = factorwise(GPTQ, unit)[0].operators[1].operators[0]
    whole = factorwise(round_to_nearest(3, 8), unit)[0].operators[1].operators[0]
    lost = [float((x @ (one.dense() - part.dense()).mT).square().sum()) for part in (again, whole)]
    assert lost[0] < 0.95 * lost[1]


def test_sparse_rows_of_what_is_never_active_or_that_no_quantiser_takes():
    x, columns = inputs(), torch.arange(8).expand(OUT, 8).byte()
    x[:, :8], columns = 0, columns + 8 * (torch.arange(OUT) % 2).byte()[:, None]
    one = RowSparse(normal(OUT, 8, seed=4), columns, IN)
    found = quantise(Product(one), x).operators[0].dense()
    expected = round_to_nearest(3, 8)(one.values.detach(), None).dense()
    torch.testing.assert_close(found[::2, :8], expected[::2])
    words = Product(one, Dense(normal(IN, IN)))
    assert quantise(words, x, vector_codebooks(2, 2)).operators[0] is one
    with pytest.raises(SiteError, match="no matrix of floats"):
        quantise(Product(one), x, vector_codebooks(2, 2))


def test_blocks_that_cannot_be_below_each_other_in_codes_are_refused():
    op = Product(BlockDiagonal(normal(4, 3, 5)), Dense(normal(IN, IN)))
    with pytest.raises(SiteError, match="its blocks cannot be stored as a VectorQuantised"):
        quantise(op, inputs(), vector_codebooks(2, 2))
    with pytest.raises(SiteError, match=r"^layer .*plain scales and no levels"):
        quantise(op, inputs(), to_normal_float(4, 8))


@pytest.mark.parametrize("quantizer", [GPTQ, round_to_nearest(5, 4, symmetric=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_is_known_from_shapes(quantizer, dtype):
    x, low = inputs(), low_rank()
    shared = Sum(Product(Dense(normal(OUT, OUT)), low), Scaled(LowRank(low.b + 1, low.a), 0.5))
    blocks = Product(BlockDiagonal(normal(4, 3, 5)), Diagonal(normal(IN)))
    columns = torch.arange(OUT).expand(OUT, OUT)[:, :6].byte()
    sparse = Product(RowSparse(normal(OUT, 6), columns, OUT), low)
    for op in (
        low,
        shared,
        blocks,
        sparse,
        Product(low, Diagonal(normal(IN))),
        Dense(normal(OUT, IN)),
    ):
        op = op.to(dtype)
        counted = count_factorwise(quantizer, Unit([site(x)], [op]))
        made = quantise(op, x, quantizer)
        assert counted == [(made.numel(), made.bytes())]
        assert made.dtype == dtype


def test_a_factor_that_sites_share_is_quantised_once():
    family = quantised_factors(truncation(second_moment()), GPTQ)
    pair = made_up(OUT, IN, family.needs, count=2)
    first, second = family.build(pair, 5)
    assert first.operators[1] is second.operators[1]
    alone = family.counts(made_up(OUT, IN, family.needs), 5)[0]
    both = family.counts(pair, 5)
    assert both[0] == alone == (first.numel(), first.bytes())
    assert both[1] == (second.operators[0].numel(), second.operators[0].bytes())


@pytest.mark.parametrize("inner", [
    truncation(second_moment()),
    skeleton(euclidean(), lambda u: u.abs().sum(1).argsort(descending=True)[: u.shape[1]]),
    METHODS["compot"].recipe({}).family,
], ids=["truncation", "skeleton", "dictionary"])  # fmt: skip
def test_the_factors_of_other_families_are_counted_and_come_near_with_the_bits(inner):
    given = made_up(24, 40, frozenset({"gram"}))
    floats = inner.build(given, 8)[0].dense()
    losses = []
    for bits in (2, 4, 8):
        family = quantised_factors(inner, round_to_nearest(bits, 16))
        (op,) = family.build(given, 8)
        assert family.counts(given, 8) == [(op.numel(), op.bytes())]
        losses.append(float((op.dense() - floats).norm() / floats.norm()))
        menu = family.menu(given)
        chosen = menu.sizes[2]
        assert menu.costs[2] == family.build(given, chosen)[0].bytes()
        assert menu.errors == sorted(menu.errors, reverse=True)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.02


def test_ranks_beyond_what_floats_could_pay_are_offered():
    inner = truncation(second_moment())
    given = made_up(64, 64, frozenset({"gram"}), torch.float32)
    family = quantised_factors(inner, GPTQ)
    assert max(filter(None, inner.menu(given).sizes)) == 31
    assert max(filter(None, family.menu(given).sizes)) == 64
    assert family.menu(given).errors[:31] == inner.menu(given).errors[:31]


def test_compensation_repairs_what_quantised_factors_lost():
    family = compensation(GPTQ, truncation(second_moment()), rounds=5)
    given = made_up(OUT, IN, family.needs)
    op = LowRank(normal(OUT, RANK, seed=2), normal(RANK, IN, seed=3))
    structured = Unit(given.sites, [op])
    metric = second_moment()(given.sites[0].stats)
    losses = []
    for rank in (0, 2, 4):
        (made,) = family.build(structured, rank)
        assert family.counts(structured, rank) == [(made.numel(), made.bytes())]
        assert len([p for p in made.modules() if isinstance(p, Quantised)]) == 2
        losses.append(float(metric.loss(op.dense() - made.dense())))
    assert losses == sorted(losses, reverse=True)


def test_what_has_no_matrix_or_no_statistics_is_refused():
    x = inputs()
    with pytest.raises(SiteError, match=r"^layer .*no matrix of floats.*corank\.merge"):
        quantise(Product(Diagonal(normal(IN)), Diagonal(normal(IN))), x)
    reads_fisher = Quantizer(GPTQ.apply, GPTQ.counts, frozenset({"fisher"}))
    with pytest.raises(SiteError, match=r"^layer .*several matrices, and fisher"):
        quantise(low_rank(), x, reads_fisher)
    blocks = METHODS["monarch"].recipe({}).family if "monarch" in METHODS else quantisation(GPTQ)
    with pytest.raises(ValueError, match="does not build float matrices"):
        quantised_factors(blocks, GPTQ)


@pytest.mark.parametrize("key", ["gptq", "round_to_nearest", "awq", "lqer", "qlora", "svdquant"])
def test_a_compressed_model_is_quantised_factor_by_factor(key, tmp_path):
    model = tiny_llama()
    corank.compress(model, "svd_llm", keep=0.6, data=tokens())
    sites = find_sites(model)
    ranks = {s.name: read(model, s).rank for s in sites if isinstance(read(model, s), LowRank)}
    more = {"rank": 2} if "rank" in METHODS[key].parameters else {}
    planned = corank.quantize(model, key, bits=4, group=8, data=tokens(), dry_run=True, **more)
    report = corank.quantize(model, key, bits=4, group=8, data=tokens(), **more)
    assert planned.totals["bytes_after"] == report.totals["bytes_after"]
    assert report.totals["bytes_after"] == sum(read(model, s).bytes() for s in sites)
    for s in sites:
        codes = [p for p in read(model, s).modules()
                 if isinstance(p, Quantised) and p.bits == 4]  # fmt: skip
        if s.name in ranks:
            assert {p.shape for p in codes} == {
                (s.shape[0], ranks[s.name]), (ranks[s.name], s.shape[1]),
            }  # fmt: skip
    corank.save(model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**tokens(1)[0]).logits, model(**tokens(1)[0]).logits)
    with pytest.raises(ValueError, match="quantised already"):
        corank.quantize(model, key, data=tokens())


@pytest.mark.parametrize("key", ["monarch", "blast", "compot", "rocket"])
def test_structures_of_blocks_and_sparse_rows_go_into_codes(key, tmp_path):
    model, data = tiny_llama(), tokens(12, 8)
    original = copy.deepcopy(model)
    corank.compress(model, key, keep=0.5, data=data)
    before = {s.name: read(model, s).dense() for s in find_sites(model)}
    report = corank.quantize(model, "gptq", bits=8, group=8, data=data)
    assert report.totals["bytes_after"] < 0.6 * report.totals["bytes_before"]
    for s in find_sites(model):
        now = read(model, s).dense()
        assert any(isinstance(part, Quantised) for part in read(model, s).modules())
        assert (now - before[s.name]).norm() < 0.1 * before[s.name].norm()
    running = copy.deepcopy(model).bfloat16()
    corank.for_inference(running)
    inner = [m for m in running.modules() if isinstance(m, (BlockDiagonal, RowSparse))]
    assert {type(part) for m in inner for part in m.children()} == {Quantised}
    losses = corank.heal(model, original, data, steps=30).losses
    assert sum(losses[-5:]) < sum(losses[:5])
    corank.save(model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**tokens(1)[0]).logits, model(**tokens(1)[0]).logits)


def test_error_feedback_in_the_metric_of_the_latents_helps_a_whole_model():
    wanted = tiny_llama()
    corank.compress(wanted, "svd_llm", keep=0.7, data=tokens())
    errors = []
    for key in ("round_to_nearest", "gptq"):
        model = copy.deepcopy(wanted)
        corank.quantize(model, key, bits=3, group=8, data=tokens())
        batch = tokens(1)[0]
        errors.append((model(**batch).logits - wanted(**batch).logits).norm().item())
    assert errors[1] < errors[0]
