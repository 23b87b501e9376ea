"""The board of special models: its rows, one on a tiny model of each kind of call, its page."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import special, special_page
from benchmarks.board.store import Results
from benchmarks.special_tasks import TASKS
from benchmarks.special_tasks.measure import measure
from benchmarks.special_tasks.rows import Composition, Row, steps
from benchmarks.special_tasks.task import Special
from corank.models import find_sites
from tests.verbs.models import tiny_mlp, vectors

ROOT = Path(__file__).parents[2]


def row(label, share, quality, **more):
    return {
        "key": f"{label}, {100 * share:g}%, seed 0", "label": label, "share": share,
        "measures": quality, "reached": share, "cpu_seconds": 1.0,
    } | more  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_of_all_shares_and_unlike(name):
    task = TASKS[name]()
    rows = list(task.rows())
    assert len({r.key for r in rows}) == len(rows) == len(task.shares) * len(task.compositions)
    assert {r.share for r in rows} == set(task.shares)


def test_labels_are_what_a_user_would_write():
    assert steps("svd_llm", {"gptq": {"bits": 8}}).label == "svd_llm + gptq(bits=8)"
    assert Row(Composition("ere", {"bits": None}), 1 / 16).key == "ere(bits=None), 6.25%, seed 0"
    assert Composition("delta_come").label == "delta_come"
    assert "fisher" in steps("fwsvd").needs


def test_every_claim_is_of_rows_that_the_board_has():
    for claim in special_page.CLAIMS:
        labels = {one.label for one in TASKS[claim.task].compositions}
        assert {claim.first, claim.second} <= labels


def test_a_network_of_convolutions_is_compressed_within_its_bytes():
    task = TASKS["digits"](small=True)
    for composition in (steps("fwsvd"), steps({"round_to_nearest": {"bits": [2, 4]}})):
        found = measure(task, Row(composition, 0.5))
        stored = [p for p in task.load().parameters() if p.ndim > 1]
        assert found["dense_bytes"] == sum(2 * p.numel() for p in stored)
        assert 0.2 < found["reached"] <= 0.5
        assert 0 <= found["measures"]["accuracy"] <= 1


class TinyPair(Special):
    name, quality, higher, targets = "tiny", "distance", False, "all-linear"

    def load(self):
        model = tiny_mlp()
        with torch.no_grad():
            for site in find_sites(model):
                g = torch.Generator().manual_seed(site.shape[0])
                model.get_parameter(f"{site.name}.weight").add_(
                    torch.randn(*site.shape, generator=g)
                )
        return model.bfloat16()

    def data(self, labelled):
        return vectors()

    def options(self):
        return {"original": tiny_mlp().bfloat16()}

    @torch.no_grad()
    def evaluate(self, model):
        x, wanted = vectors()[0], self.load().float()
        return {self.quality: float((model(x) - wanted(x)).norm())}


def test_what_a_delta_stores_is_a_share_of_what_changed():
    task, found = TinyPair(), {}
    for share in (0.5, 1):
        found[share] = measure(task, Row(Composition("ere", {"bits": None}), share))
        assert 0.5 * share < found[share]["reached"] <= share
    stored = sum(2 * site.shape[0] * site.shape[1] for site in find_sites(task.load()))
    assert found[1]["dense_bytes"] == stored
    assert found[1]["measures"]["distance"] < found[0.5]["measures"]["distance"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smaller", "routed"])
def test_rows_of_whole_models_train_and_are_counted(name):
    task = TASKS[name](small=True)
    for one in task.rows():
        found = measure(task, one)
        assert found["reached"] == pytest.approx(one.share, abs=0.01)
        assert found["measures"]["perplexity"] > 1


def test_a_run_leaves_out_what_is_there_and_keeps_what_failed(tmp_path):
    task = TASKS["digits"](small=True)
    task.compositions, task.shares = (steps("svd"), steps("mobe")), (0.5,)
    results = Results(tmp_path / "special.json")
    results.add("digits", row("svd", 0.5, {"accuracy": 2.0}))
    special.run(task, "", results, float("inf"))
    assert results.get("digits", "svd, 50%, seed 0")["measures"] == {"accuracy": 2.0}
    assert results.get("digits", "mobe, 50%, seed 0")["error"]
    assert 0 < results.get("digits", "dense")["measures"]["accuracy"] <= 1


def test_the_page_says_what_was_measured_and_what_was_not():
    tables = {
        "digits": [
            {"key": "dense", "measures": {"accuracy": 0.99}},
            row("mixed_td", 0.5, {"accuracy": 0.9}), row("mixed_td", 0.25, {"accuracy": 0.7}),
            row("svd(allocate='greedy')", 0.5, {"accuracy": 0.8}),
            row("svd(allocate='greedy')", 0.25, {"accuracy": 0.7}),
        ],
        "experts": [{"key": "mobe, 25%", "label": "mobe", "share": 0.25, "error": "too | small"}],
        "environment": {"torch": "x"},
    }  # fmt: skip
    text = special_page.render(tables)
    assert "The dense model: accuracy 0.990." in text
    assert text.index("| mixed_td | 50.0% | 0.900 | 1.0 |") < text.index(
        "| svd(allocate='greedy') |"
    )
    assert "1 of 2 sizes" in text
    assert "too / small" in text
    assert "- experts: mobe, 50%, seed 0" in text
    assert "- digits: mixed_td, 50%" not in text
    assert "## delta" not in text


def test_the_page_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "special.json").read_text())
    assert (ROOT / "docs" / "board-special.md").read_text() == special_page.render(found)
