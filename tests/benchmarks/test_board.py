"""The board: texts that do not overlap, a row on a tiny model, results that survive, a page."""

import copy
import json

import pytest
import torch

from benchmarks import pages, texts
from benchmarks.board import measure as measuring
from benchmarks.board.literal import factorise
from benchmarks.board.rows import LITERAL, Row, list_rows
from benchmarks.board.store import Results
from benchmarks.board.tasks import Sizes, Task
from corank.calibration import batches
from corank.linalg import energy

from ..verbs.models import tiny_bert, tokens


class Tiny(Task):
    name, targets, sizes = "tiny", r"re:encoder\..*", Sizes(6, 6, 4)

    def __init__(self):
        self.model = tiny_bert()

    def load(self):
        return copy.deepcopy(self.model)

    def calibration(self, seed):
        return batches(tokens(seed=seed))

    healing = calibration

    def tuning(self):
        return batches(tokens(2, seed=5))

    def evaluate(self, model):
        held = tokens(2, seed=9)
        with torch.no_grad():
            pairs = [
                (model(**b).last_hidden_state, self.model(**b).last_hidden_state) for b in held
            ]
        cosines = [torch.cosine_similarity(x, y, -1).mean() for x, y in pairs]
        return {"in: mean cosine": torch.stack(cosines).mean().item()}

    tune = evaluate


def test_no_text_of_evaluation_or_tuning_is_calibrated_on():
    found = {split: set(texts.split_texts(split)) for split in texts.SPLITS}
    assert all(found.values())
    for i, split in enumerate(texts.SPLITS):
        for other in texts.SPLITS[i + 1 :]:
            assert not found[split] & found[other]


def test_samples_are_deterministic_and_differ_by_seed():
    first = texts.sample("descriptions", 20)
    assert first == texts.sample("descriptions", 20)
    assert first[:10] == texts.sample("descriptions", 10)
    assert first != texts.sample("descriptions", 20, seed=1)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split"):
        texts.split_texts("training")


def test_every_method_stands_on_the_board_once_per_key():
    keys = [row.key for row in list_rows()]
    assert len(keys) == len(set(keys))
    import corank

    assert {row.method for row in list_rows()} == {LITERAL} | {
        m.key for m in corank.methods("compress") if not m.laws & {"setting", "encodes"}
    }


@pytest.mark.parametrize("method", ["svd", LITERAL, "kfac_svd", "corank"])
def test_a_row_of_a_tiny_model(method, tmp_path):
    task, seen = Tiny(), measuring.Collected(Tiny(), tmp_path)
    row, _ = measuring.measure(task, Row(method, 0.5, "uniform"), seen, 1.0)
    assert row["reached"] <= 0.5
    assert 0 < row["measures"]["in: mean cosine"] < 1
    assert row["model_bytes"] < row["dense_bytes"]
    assert row["cpu_seconds"]["factorisation"] > 0
    assert (row["cpu_seconds"]["calibration"] > 0) == (method != "svd")
    json.dumps(row)


def test_a_healed_row_is_nearer_to_the_original(tmp_path, monkeypatch):
    settings = {"tiny": {"learning_rate": 1e-3, "features": 1.0, "output": 1.0}}
    monkeypatch.setattr(measuring, "HEALING", settings)
    task, seen = Tiny(), measuring.Collected(Tiny(), tmp_path)
    plain, made = measuring.measure(task, Row("svd", 0.3, "uniform"), seen, 2.0)
    row = Row("svd", 0.3, "uniform", healed=True)
    healed, same = measuring.measure(task, row, seen, 2.0, made)
    assert same is made
    name = "in: mean cosine"
    assert healed["measures"][name] > plain["measures"][name]
    assert healed["healing"]["last losses"] < healed["healing"]["first loss"]


def test_the_literal_recipe_is_optimal_in_its_metric():
    torch.manual_seed(0)
    w, x = torch.randn(12, 8), torch.randn(100, 8)
    c = x.T @ x / 100
    b, a = factorise(w, c, 3)
    tail = torch.linalg.svdvals(w.double() @ torch.linalg.cholesky(c.double()))[3:]
    assert energy(w - b @ a, c) == pytest.approx(tail.square().sum().item(), rel=1e-4)


def test_the_literal_recipe_shifts_a_singular_second_moment():
    x = torch.randn(4, 8)
    b, a = factorise(torch.randn(12, 8), x.T @ x, 3)
    assert torch.isfinite(b @ a).all()


def test_results_are_read_back_and_replaced(tmp_path):
    path = tmp_path / "results.json"
    Results(path).add("t", {"key": "a", "value": 1})
    Results(path).add("t", {"key": "b", "value": 2})
    again = Results(path)
    again.add("t", {"key": "a", "value": 3})
    assert again.has("t", "b")
    assert not again.has("t", "c")
    assert Results(path).get("t", "a")["value"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def board(cosine):
    def row(method, value, healed=False, allocate="uniform"):
        return {
            "key": Row(method, 0.4, allocate, healed=healed).key, "method": method, "keep": 0.4,
            "allocate": allocate, "seed": 0, "healed": healed, "reached": 0.4, "sites": 36,
            "model_bytes": 5_000_000, "dense_bytes": 9_000_000,
            "cpu_seconds": {"calibration": 1.0, "factorisation": 2.0, "healing": 0.0},
            "measures": {"in: mean cosine": value, "out: mean cosine": value},
        }  # fmt: skip

    rows = [row("svd", 0.3), row(LITERAL, 0.7), row("corank", cosine, allocate="greedy_floor")]
    dense = {"key": "dense", "measures": {"in: mean cosine": 1.0, "out: mean cosine": 1.0}}
    return {"MiniLM": [dense, *rows], "environment": {"torch": "2"}}


@pytest.mark.parametrize(("cosine", "verdict"), [(0.8612, "met"), (0.7512, "not met")])
def test_the_page_shows_what_was_measured_and_judges_it(cosine, verdict, tmp_path):
    (tmp_path / "compress.json").write_text(json.dumps(board(cosine)))
    page, plots = pages.render(tmp_path)
    assert f"{cosine:.3f}" in page
    line = next(line for line in page.splitlines() if "nothing trained, in domain" in line)
    assert line.rstrip(" |").endswith(f"| {verdict}")
    assert plots
    assert pages.render(tmp_path) == (page, plots)
