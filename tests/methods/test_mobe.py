"""MoBE on a small trained mixture: the formula, bytes, files, bad input."""

import pytest
import torch
from torch.nn import functional as F

import corank
from corank.operators import Mixture
from corank.registry import METHODS

from .mixtures import loss, mixture, saved_again, stored, text, unit_of


def test_mobe_is_the_published_formula_with_bases_for_gate_and_for_up():
    given = unit_of(mixture())
    ops = METHODS["mobe"].recipe({"per_basis": 3, "steps": 20}).family.build(given, 10)
    banks = set()
    for op in ops:
        halves = []
        for half in op.operators:
            left, mixed = half.operators
            mix = mixed.operator
            assert isinstance(mix, Mixture)
            banks.add(id(mix.bank.weight))
            bases = mix.bank.weight.view(2, 10, 32)
            right = F.silu(sum(c * b for c, b in zip(mix.coefficients, bases, strict=True)))
            halves.append(left.weight @ right)
        torch.testing.assert_close(op.dense(), torch.cat(halves))
    assert len(banks) == 2  # one for gate, one for up, each shared by all six


def test_mobes_operators_stand_for_their_own_experts_and_halves():
    given = unit_of(mixture())
    ops = METHODS["mobe"].recipe({"per_basis": 2}).family.build(given, 24)
    made = torch.stack([torch.stack(op.dense().chunk(2)) for op in ops]).flatten(0, 1).flatten(1)
    real = torch.stack([torch.stack(op.dense().chunk(2)) for op in given.ops]).flatten(0, 1)
    apart = torch.cdist(made, real.flatten(1))
    assert torch.equal(apart.argmin(1), torch.arange(12))


def test_mobes_counts_are_what_is_stored_by_the_papers_formula():
    given = unit_of(mixture())
    family = METHODS["mobe"].recipe({"per_basis": 4, "steps": 1}).family
    for width in (1, 7, 24):
        ops, counts = family.build(given, width), family.counts(given, width)
        leaves = {id(t): t for op in ops for t in op.parameters()}.values()
        assert sum(numbers for numbers, _ in counts) == sum(t.numel() for t in leaves)
        assert sum(bytes_ for _, bytes_ in counts) == 4 * sum(t.numel() for t in leaves)
        one = 6 * 24 * width + 2 * width * 32 + 6 * 2  # E m r + b r n + E b
        assert sum(numbers for numbers, _ in counts) == 2 * one


def test_mobes_errors_fall_with_the_width_and_are_those_of_what_is_built():
    given = unit_of(mixture())
    family = METHODS["mobe"].recipe({"steps": 60}).family
    menu = family.menu(given)
    assert menu.errors == sorted(menu.errors, reverse=True)
    made = family.build(given, menu.sizes[2])
    lost = sum(float((a.dense() - b.dense().detach()).square().sum())
               for a, b in zip(made, given.ops, strict=True))  # fmt: skip
    assert menu.errors[2] == pytest.approx(lost, rel=1e-4)


def test_mobe_touches_nothing_but_gate_and_up_and_says_so(tmp_path):
    model = mixture()
    before, whole = loss(model), stored(model)
    other = {n: p.clone() for n, p in model.named_parameters() if "gate_up_proj" not in n}
    report = corank.compress(model, "mobe", keep=0.85)
    changed = {row.name.split(".")[-2] for row in report.sites if row.operator != "Dense"}
    assert changed == {"gate_up_proj"}
    assert any("20 of 32 targeted weights are none that 'mobe'" in note for note in report.notes)
    totals = report.totals
    assert 0.8 * totals["bytes_before"] < totals["bytes_after"] <= 0.85 * totals["bytes_before"]
    saved = totals["bytes_before"] - totals["bytes_after"]
    assert whole - stored(model) == saved
    assert totals["model_bytes_before"] - totals["model_bytes_after"] == saved
    now = dict(model.named_parameters())
    down = torch.stack([op.dense() for op in model.model.layers[0].mlp.experts.down_proj])
    assert torch.equal(down, other.pop("model.layers.0.mlp.experts.down_proj"))
    other.pop("model.layers.1.mlp.experts.down_proj")
    assert all(torch.equal(now[name], old) for name, old in other.items())
    assert loss(model) < before + 0.5
    again = saved_again(model, tmp_path / "small")
    assert torch.equal(again(**text()[0]).logits, model(**text()[0]).logits)
    assert stored(again) == stored(model)
    weights = [op.operators[0].operators[1].operator.bank.weight
               for op in again.model.layers[0].mlp.experts.gate_up_proj]  # fmt: skip
    assert all(weight is weights[0] for weight in weights)


def test_a_model_without_experts_is_refused_and_bad_options_are_named():
    model = mixture()
    with pytest.raises(ValueError, match=r"no targeted weight is an expert's gate_up_proj"):
        corank.compress(model, "mobe", keep=0.5, targets="attention")
    with pytest.raises(ValueError, match="per_basis=0"):
        corank.compress(model, "mobe", keep=0.5, per_basis=0)
    with pytest.raises(ValueError, match="width 25 is outside 1 to 24"):
        corank.compress(model, "mobe", rank=25)
    assert model.model.layers[0].mlp.experts.gate_up_proj.shape == (6, 48, 32)
