"""Rounding that is learnt: its gradient, what it starts as, and that codes are the same matrix."""

import copy

import pytest
import torch

import corank
from corank.healing import heal
from corank.models import Site, find_sites, install, read
from corank.operators import LearnedRounding, Product, Quantised, build, describe, settle
from corank.quantizers import learned_scales
from tests.verbs.models import tiny_llama, tokens

OUT, IN, BITS = 6, 20, 3


def made(dtype=torch.float64, bits=BITS):
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    op = learned_scales(bits, rank=3)(
        weight.to(dtype), Site("s", "q", 0, (OUT, IN), False, "linear")
    )
    with torch.no_grad():
        for part in (op.left, op.row, op.column):
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) / 4)
    return op


def test_it_starts_as_the_nearest_codes_of_the_best_range_of_each_row():
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[:, 0] *= 4
    op = learned_scales(BITS)(weight, Site("s", "q", 0, (OUT, IN), False, "linear"))
    top = 2**BITS - 1
    for row, found in zip(weight, op.dense(), strict=True):
        low, high = min(float(row.min()), 0), max(float(row.max()), 0)
        zero, losses = round(-low / ((high - low) / top)), []
        for i in range(1, 101):
            step = (high - low) / top * i / 100
            grid = (torch.arange(top + 1, dtype=torch.float64) - zero) * step
            nearest = grid[(row[:, None] - grid).abs().argmin(1)]
            losses.append(((nearest - row).abs() ** 2.4).sum())
        assert float(((found - row).abs() ** 2.4).sum()) == pytest.approx(float(min(losses)))


def test_gradients_pass_the_rounding_unchanged_and_stop_at_the_clamp():
    op = made()
    op.train_rounding()
    assert not op.weight.requires_grad
    weights = torch.randn(OUT, IN, dtype=torch.float64)
    (op.dense() * weights).sum().backward()
    with torch.no_grad():
        logs = op.left @ op.right + op.row[:, None] + op.column + op.log_step[:, None]
        divided, zero = op.weight / logs.exp(), op.zero[:, None].double()
        raw = divided.round() + zero
        inside = (raw >= 0) & (raw <= 2**BITS - 1)
        assert inside.any()
        assert not inside.all()
        step = op.log_step.exp()[:, None]
        at_logs = weights * step * inside * -divided
        codes = raw.clamp(0, 2**BITS - 1) - zero
        torch.testing.assert_close(op.left.grad, at_logs @ op.right.mT)
        torch.testing.assert_close(op.right.grad, op.left.mT @ at_logs)
        torch.testing.assert_close(op.row.grad, at_logs.sum(1))
        torch.testing.assert_close(op.column.grad, at_logs.sum(0))
        torch.testing.assert_close(op.log_step.grad, (at_logs + weights * step * codes).sum(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_settled_codes_are_the_same_matrix_bit_for_bit(dtype, bits):
    op = made(dtype, bits)
    settled = settle(copy.deepcopy(op))
    assert isinstance(settled, Quantised)
    assert settled.dtype == op.dtype == dtype
    assert torch.equal(settled.dense(), op.dense())
    counts = learned_scales(bits).counts((OUT, IN), dtype)
    assert (settled.numel(), settled.bytes()) == counts
    again = build(describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    assert torch.equal(again.dense(), op.dense())


def test_bad_parts_are_refused():
    op = made()
    parts = [op.weight, op.log_step, op.left, op.right, op.row, op.column, op.zero]
    for index, bad in ((1, op.column), (2, op.left[:, :1]), (6, op.zero.int())):
        with pytest.raises(ValueError, match="LearnedRounding"):
            LearnedRounding(*parts[:index], bad, *parts[index + 1 :], BITS)
    with pytest.raises(ValueError, match="bits must be"):
        LearnedRounding(*parts, 9)
    with pytest.raises(ValueError, match="rank=0 is below 1"):
        learned_scales(rank=0)


def test_training_the_rounding_brings_the_blocks_nearer():
    original = tiny_llama()
    model = copy.deepcopy(original).requires_grad_(False)
    for site in find_sites(model):
        op = learned_scales(BITS)(read(model, site).dense().detach(), site)
        op.train_rounding()
        install(model, site, op)
    healed = heal(model, original, tokens(), steps=30, learning_rate=2e-2, output=0.0)
    assert sum(healed.losses[-6:]) < 0.9 * sum(healed.losses[:6])


def test_lrq_leaves_plain_codes_and_all_else_as_it_was(tmp_path):
    model, original = tiny_llama(), tiny_llama()
    told = corank.quantize(tiny_llama(), "lrq", bits=3, dry_run=True)
    report = corank.quantize(model, "lrq", bits=3, data=tokens(), heal_minutes=0.01)
    assert told.totals["bytes_after"] == report.totals["bytes_after"]
    assert all(type(read(model, site)) is Quantised for site in find_sites(model))
    kept = {n: p for n, p in original.named_parameters() if p.ndim == 1 or "embed" in n}
    assert all(torch.equal(model.get_parameter(name), was) for name, was in kept.items())
    corank.save(model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**tokens(1)[0]).logits, model(**tokens(1)[0]).logits)


def test_factors_of_a_compressed_model_learn_their_rounding_each():
    model = tiny_llama()
    corank.compress(model, "svd_llm", keep=0.6, data=tokens())
    corank.quantize(model, "lrq", data=tokens(), heal_minutes=0.005)
    assert all(type(read(model, site)) is Product for site in find_sites(model))
