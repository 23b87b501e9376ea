"""Sub-MoE on a small trained mixture: clusters, merging, bytes, files, bad input."""

import pytest
import torch

import corank
from corank.models import read
from corank.registry import METHODS
from corank.rewrites import Unit

from .mixtures import experts, loss, mixture, saved_again, stored, text


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
    corank.calibration.collect(model, sites, {"output_cosines", "gram"}, text(12))
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


def test_cut_experts_are_the_papers_joint_svd_of_whitened_weights_done_literally():
    given = calibrated(alike(mixture(), PAIRS))
    ops = METHODS["submoe"].recipe({"kept": 0.25}).family.build(given, 3)
    pair = [(given.ops[e].dense().detach().double(), given.sites[e].stats["gram"].double())
            for e in (1, 5)]  # fmt: skip
    roots = [torch.linalg.cholesky(gram) for _, gram in pair]
    side = [weight @ root for (weight, _), root in zip(pair, roots, strict=True)]
    u, s, vh = torch.linalg.svd(torch.cat(side, 1), full_matrices=False)
    one, other = (v @ torch.linalg.inv(root)
                  for v, root in zip(vh[:8].split(32, 1), roots, strict=True))  # fmt: skip
    expected = u[:, :8] @ s[:8].diag() @ ((3 * one + 5 * other) / 8)
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
    ops, lost = family.build(given, 4), 0.0
    for site, old, new in zip(given.sites, given.ops, ops, strict=True):
        error = old.dense().detach() - new.dense()
        share = site.stats["tokens"] / 22  # of the rows of both projections
        lost += share * float((error @ site.stats["gram"] * error).sum())
    assert menu.errors[3] == pytest.approx(lost, rel=1e-3)
    assert menu.errors[0] == max(menu.errors)
    assert menu.errors[-1] == pytest.approx(0, abs=1e-9)


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
