"""Claims: the rule on known numbers, what is looked at in weights, a tiny run, the page."""

import copy
import json
from pathlib import Path

import pytest
import torch

import corank
from benchmarks.board.store import Results
from benchmarks.claiming import judging, runs, scores
from benchmarks.claiming.listed import CLAIMS, Claim, Side
from benchmarks.claiming.page import render_claims
from benchmarks.claiming.pairs import Pairs, draw
from benchmarks.claiming.runs import Setting
from benchmarks.claiming.weights import count_intruders, cut_ranks
from benchmarks.training.claims import render_claims as render_training_claims
from benchmarks.tuning.measure import FROZEN
from corank.adapters.record import adapted

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("first", "second", "higher", "start", "verdict"),
    [
        ([1.0, 1.1, 1.2], [0.1, 0.2, 0.3], True, None, judging.HELD),
        ([1.0, 1.1, 1.2], [0.1, 0.2, 0.3], False, None, judging.NOT_HELD),
        ([1.0, 2.0, 3.0], [1.1, 2.1, 3.1], True, None, judging.NOISE),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], True, None, judging.NOISE),
        ([0.97, 0.97, 0.97], [1.0, 1.0, 1.0], True, 0.0, judging.HELD),
        ([0.90, 0.90, 0.90], [1.0, 1.0, 1.0], True, 0.0, judging.NOT_HELD),
        ([0.80, 0.95, 1.10], [1.0, 1.0, 1.0], True, 0.0, judging.NOISE),
        ([1.03, 1.03, 1.03], [1.0, 1.0, 1.0], False, 2.0, judging.HELD),
    ],
)
def test_the_rule(first, second, higher, start, verdict):
    assert judging.verdict(first, second, higher, start) == verdict


def test_the_error_is_that_of_a_difference_of_means():
    first, second = [0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 4.0, 6.0]
    error = 2 * ((5 / 3 + 20 / 3) / 2) ** 0.5 * (2 / 4) ** 0.5
    gap = 1.5 + error
    assert judging.verdict([x + gap * 1.01 for x in first], second, True) == judging.HELD
    assert judging.verdict([x + gap * 0.99 for x in first], second, True) == judging.NOISE


def test_a_new_leading_direction_is_an_intruder_and_a_grown_old_one_is_not():
    weight = torch.zeros(60, 40)
    weight[:40] = torch.diag(torch.linspace(2, 1, 40))
    new = weight.clone()
    new[50, 0] = 9.0
    assert count_intruders(weight, weight) == 0
    assert count_intruders(weight, new) == 1
    grown = weight.clone()
    grown[39, 39] = 9.0
    assert count_intruders(weight, grown) == 0


@pytest.mark.parametrize("best", [False, True])
def test_factors_are_cut_to_their_first_or_best_ranks(best):
    task = Pairs(0)
    model = task.load()
    corank.adapt(model, "lora", rank=6)
    weight = next(iter(adapted(model).values()))
    low = next(op for op in weight.modules() if type(op).__name__ == "LowRank")
    with torch.no_grad():
        low.b.copy_(torch.randn(low.b.shape, generator=torch.Generator().manual_seed(0)))
    whole, first = (low.b @ low.a).detach(), (low.b[:, :2] @ low.a[:2]).detach()
    cut_ranks(model, 2, best)
    kept = (low.b @ low.a).detach()
    if not best:
        torch.testing.assert_close(kept, first)
        return
    u, s, vh = torch.linalg.svd(whole)
    torch.testing.assert_close(kept, (u[:, :2] * s[:2]) @ vh[:2], atol=1e-4, rtol=1e-4)


def test_dylora_is_used_at_a_rank_with_that_ranks_scale():
    model = Pairs(0).load()
    corank.adapt(model, "dylora", rank=8, alpha=16.0)
    weight = next(iter(adapted(model).values()))
    low = next(op for op in weight.modules() if type(op).__name__ == "LowRank")
    with torch.no_grad():
        low.b.copy_(torch.randn(low.b.shape, generator=torch.Generator().manual_seed(0)))
    cut_ranks(model, 2, best=False)
    added = (weight.view.dense() - weight.base.dense()).detach()
    expected = (16.0 / 2 * low.b[:, :2] @ low.a[:2]).detach()
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-4)


def test_pairs_of_two_seeds_have_nothing_in_common_and_the_network_knows_its_own():
    assert not torch.isclose(draw(0)[0], draw(runs.TUNING_SEED)[0]).all(1).any()
    found = Pairs(0).evaluate(Pairs(0).load())
    assert found["values recalled of the first keys"] > 0.95
    assert found["values recalled"] < 0.1


def test_tuning_looks_at_no_evaluation_row(monkeypatch):
    task = runs.task_of(Setting("digits", FROZEN), 0)
    task = copy.copy(task)
    images = dict(task._images)
    before = scores.tuning_loss(task, task.load())
    images["evaluate"] = tuple(torch.zeros_like(t) for t in images["evaluate"])
    task.__dict__["_images"] = images
    assert scores.tuning_loss(task, task.load()) == before


@pytest.fixture
def tried(tmp_path, monkeypatch):
    monkeypatch.setitem(runs.GRIDS, "digits", (1e-3, 1e-2))
    monkeypatch.setitem(runs.SEEDS, "digits", (0, 1))
    small, large = (Setting("digits", "lora", (("rank", r),), steps=3) for r in (1, 2))
    claim = Claim(
        "ranks", "A paper", "0000.00000", "is close", "close", Side(small, "accuracy"),
        Side(large, "accuracy"),
    )  # fmt: skip
    path = tmp_path / "claims.json"
    for setting in claim.settings:
        runs.make(setting, Results(path))
    return claim, path


def test_a_claim_is_run_once_and_judged(tried, monkeypatch):
    claim, path = tried
    written = path.read_text()
    monkeypatch.setattr(runs, "measure", None)
    monkeypatch.setattr(runs, "tune", None)
    for setting in claim.settings:
        runs.make(setting, Results(path))
    assert path.read_text() == written
    first, second, verdict = judging.judge(claim, json.loads(written))
    assert len(first.values) == len(second.values) == 2
    assert first.trainable < second.trainable
    assert verdict in (judging.HELD, judging.NOT_HELD, judging.NOISE)


def test_a_wider_grid_tries_the_new_rates_only_and_repeats_runs_at_another_rate(tried, monkeypatch):
    claim, path = tried
    setting, asked = claim.first.setting, []
    monkeypatch.setitem(runs.GRIDS, "digits", (1e-3, 1e-2, 2e-2))
    monkeypatch.setattr(runs, "tune", lambda _, rate: asked.append(rate) or -1.0)
    runs.make(setting, Results(path))
    assert asked == [2e-2]
    assert Results(path).get("runs", f"{setting.key}, seed 0")["rate"] == 2e-2


def test_a_claim_with_a_seed_missing_is_not_judged(tried):
    claim, path = tried
    results = json.loads(path.read_text())
    results["runs"] = results["runs"][:-1]
    assert judging.judge(claim, results) is None


def test_claims_have_keys_of_their_own_and_name_registered_methods():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.possible for claim in CLAIMS)


def test_the_page_is_what_was_measured():
    results = json.loads((ROOT / "benchmarks" / "results" / "claims.json").read_text())
    page = (ROOT / "docs" / "claims.md").read_text()
    training = json.loads((ROOT / "benchmarks" / "results" / "train.json").read_text())
    assert page == render_claims(results, render_training_claims(training)), (
        "run python -m benchmarks.pages"
    )


def test_what_was_not_measured_is_listed_as_not_tried():
    page = render_claims({})
    assert "## Not tried" in page
    assert all(claim.key in page for claim in CLAIMS)
