"""Experts that share weights, on a small trained mixture: values, bytes, files, bad input."""

import pytest
import torch
from torch.nn import functional as F

import corank
from corank.models import find_sites, read
from corank.operators import Mixture
from corank.registry import METHODS
from corank.rewrites import Unit

from .mixtures import loss, mixture, text


def experts(model, layer=0, projection="gate_up_proj"):
    sites = find_sites(model, "mlp")
    return [s for s in sites if s.kind == "expert" and s.layer == layer and projection in s.name]


def stored(model):
    return sum(
        t.numel() * t.element_size() for t in {id(t): t for t in model.parameters()}.values()
    )


def unit_of(model, **where):
    sites = experts(model, **where)
    return Unit(sites, [read(model, site) for site in sites])


def saved_again(model, folder):
    corank.save(model, folder)
    return type(model).from_pretrained(folder)


# mobe


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


# submoe


def alike(model, pairs):
    """Experts that are made to be near each other, so that they should be merged."""
    for layer in model.model.layers:
        for one, other in pairs:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                noise = torch.randn(weight[one].shape, generator=torch.Generator().manual_seed(3))
                weight.data[other] = weight.data[one] + 1e-3 * noise
    return model


def calibrated(model, layer=0, tokens=(1.0, 3.0, 0.0, 0.0, 2.0, 5.0)):
    sites = experts(model, layer) + experts(model, layer, "down_proj")
    corank.calibration.collect(model, sites, {"output_cosines"}, text())
    for site in sites:
        site.stats["tokens"] = tokens[site.expert[2]]
    return Unit(sites, [read(model, site) for site in sites])


PAIRS = [(0, 4), (1, 5), (2, 3)]


def test_experts_with_like_outputs_become_their_mean_by_how_often_they_are_used():
    given = calibrated(alike(mixture(), PAIRS))
    ops = METHODS["submoe"].recipe({}).family.build(given, 3)
    for start in (0, 6):  # gate_up, down; 2 and 3 are never routed to: a plain mean
        old, new = given.ops[start : start + 6], ops[start : start + 6]
        for (one, other), (a, b) in zip(PAIRS, [(1, 2), (3, 5), (1, 1)], strict=True):
            assert new[one] is new[other]
            mean = (a * old[one].dense() + b * old[other].dense()) / (a + b)
            torch.testing.assert_close(new[one].dense(), mean)
        assert len({id(op) for op in new}) == 3


def test_cut_experts_are_the_papers_joint_svd_done_literally():
    given = calibrated(alike(mixture(), PAIRS))
    ops = METHODS["submoe"].recipe({"kept": 0.25}).family.build(given, 3)
    one, other = (given.ops[e].dense().detach().double() for e in (1, 5))
    u, s, vh = torch.linalg.svd(torch.cat([one, other], 1), full_matrices=False)
    v = (3 * vh[:8, :32] + 5 * vh[:8, 32:]) / 8
    expected = u[:, :8] @ s[:8].diag() @ v
    torch.testing.assert_close(ops[1].dense().double(), expected, atol=1e-4, rtol=1e-3)
    assert ops[1] is ops[5]


def test_with_every_direction_kept_the_subspace_mean_is_the_mean():
    """What the recipe says of the method: the SVD matters only where it is cut."""
    weights = torch.randn(3, 6, 8, dtype=torch.float64)
    shares = torch.tensor([0.5, 0.2, 0.3]).double()
    u, s, vh = torch.linalg.svd(torch.cat([*weights], 1), full_matrices=False)
    v = sum(f * part for f, part in zip(shares, vh.split(8, 1), strict=True))
    torch.testing.assert_close(u @ s.diag() @ v, torch.einsum("e,eij->ij", shares, weights))


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_merged_experts_count_once_and_errors_fall_as_more_of_them_stay(kept):
    given = calibrated(mixture())
    family = METHODS["submoe"].recipe({"kept": kept}).family
    for size in (1, 4, 6):
        ops, counts = family.build(given, size), family.counts(given, size)
        leaves = {id(t): t for op in ops for t in op.parameters()}.values()
        assert sum(numbers for numbers, _ in counts) == sum(t.numel() for t in leaves)
        assert sum(bytes_ for _, bytes_ in counts) == 4 * sum(t.numel() for t in leaves)
    menu = family.menu(given)
    assert menu.sizes == [1, 2, 3, 4, 5, 6, *([None] if kept < 1 else [])]
    if kept == 1:
        assert menu.errors[-1] == 0
        assert menu.errors[0] == max(menu.errors)


def test_submoe_on_a_model_keeps_like_experts_and_saves_them_once(tmp_path):
    model = alike(mixture(), PAIRS)
    before, whole = loss(model), stored(model)
    report = corank.compress(model, "submoe", keep=0.5, data=text(), targets="mlp")
    assert report.totals["bytes_after"] == 0.5 * report.totals["bytes_before"]
    assert whole - stored(model) == report.totals["bytes_before"] / 2
    assert loss(model) == pytest.approx(before, abs=1e-2)
    again = saved_again(model, tmp_path / "small")
    assert torch.equal(again(**text()[0]).logits, model(**text()[0]).logits)
    assert stored(again) == stored(model)
    merged = again.model.layers[1].mlp.experts
    assert merged.down_proj[1] is merged.down_proj[5]
    assert merged.down_proj[1] is not merged.down_proj[0]


def test_experts_that_no_token_reaches_stay_finite():
    model = mixture()
    for layer in model.model.layers:
        gate = layer.mlp.gate
        gate.register_forward_hook(lambda _, args, out: (out[0], out[1], out[2] % 3))
    corank.compress(model, "submoe", rank=2, data=text())
    assert all(leaf.isfinite().all() for leaf in model.parameters())


@pytest.mark.parametrize("allocate", ["uniform", "greedy", "knapsack"])
def test_submoe_meets_its_budget_with_every_allocator(allocate):
    model = mixture()
    corank.compress(model, "submoe", keep=0.7, data=text(), allocate=allocate)
    assert stored(model) < stored(mixture())


def test_submoe_refuses_what_it_cannot_merge():
    model = mixture()
    with pytest.raises(corank.errors.SiteError, match="outside 1 to its layer's 6 experts"):
        corank.compress(model, "submoe", rank=7, data=text())
    with pytest.raises(ValueError, match=r"kept=0 is outside \(0, 1\]"):
        corank.compress(model, "submoe", keep=0.5, kept=0)
    with pytest.raises(corank.errors.DataError, match="output_cosines"):
        corank.compress(model, "submoe", keep=0.5)
    targets = ["gate_up_proj", "down_proj.0"]
    with pytest.raises(corank.errors.SiteError, match="other experts for one projection"):
        corank.compress(model, "submoe", keep=0.5, data=text(), targets=targets)
    assert model.model.layers[0].mlp.experts.gate_up_proj.shape == (6, 48, 32)


@pytest.mark.parametrize("key", ["mobe", "submoe"])
def test_what_experts_share_counts_once_in_the_next_budget(key):
    model = mixture()
    corank.compress(model, key, rank=3, data=text(), targets=["gate_up_proj", "down_proj"])
    before = stored(model)
    corank.compress(model, "svd", keep=0.9, targets="mlp")
    assert stored(model) < before
