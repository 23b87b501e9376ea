"""The pages on training: what was counted and measured, and nothing typed."""

import json
import math

import pytest
import torch

from benchmarks.board.store import Results
from benchmarks.board.sweep import tune_and_run
from benchmarks.memory_page import render_memory
from benchmarks.pages import RESULTS
from benchmarks.training import claims
from benchmarks.training.measure import measure, stored_bytes, tune
from benchmarks.training.page import render_training
from benchmarks.training.rows import GRIDS, KINDS, PLAIN, RANKS, SEEDS, Row, list_rows
from benchmarks.training.tasks import TASKS
from corank.training import optimizers


def test_the_page_of_bytes_is_what_was_counted():
    found = json.loads((RESULTS / "memory.json").read_text())
    assert (RESULTS.parent.parent / "docs" / "train-memory.md").read_text() == render_memory(found)
    for row in found["rows"]:
        assert row["adamw"]["weights"] > 2 * row["parameters"]  # and buffers
        assert row["galore"]["state"] < row["adamw"]["state"]


def test_every_task_is_described_everywhere():
    assert set(TASKS) == set(RANKS) == set(KINDS) == set(GRIDS) == set(SEEDS)


def test_every_optimiser_has_a_row_at_the_ranks_of_the_task():
    rows = {row.key: dict(row.parameters) for row in list_rows("small")}
    assert {f"{key}, optimizer" for key in optimizers()} <= set(rows)
    assert rows["galore, optimizer"] == {"rank": 24, "every": 20}
    assert rows["lora, adapt"] == {"rank": 24}
    assert rows["dct_adamw, optimizer"]["every"] == 1
    assert rows["sst, factorize"] == {"rank": 24, "every": 20, "warmup": 2}
    assert rows["btt, factorize"] == {}  # a rank of 1 is no share of the width
    assert rows[f"{PLAIN}, factorize"] == {"rank": 24, "guided": 0.0}


def test_a_trained_encoder_gets_only_what_keeps_its_function():
    keys = [row.method for row in list_rows("packages") if row.kind == "factorize"]
    assert "cuttlefish" in keys
    assert not {"spectral_init", "btt", "condlr"} & set(keys)


def test_all_methods_see_the_same_tokens(monkeypatch):
    monkeypatch.setattr(
        "benchmarks.training.tasks.tokens", lambda split: torch.arange(640).view(10, 64)
    )
    first, again = TASKS["small"].batches(1), TASKS["small"].batches(1)
    assert [batch.shape for batch in first] == [(8, 64)] * 100
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(torch.stack(first), torch.stack(TASKS["small"].batches(2)))


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.setattr(TASKS["digits"], "steps", 10)
    return TASKS["digits"]


@pytest.mark.parametrize("method", ["adamw", "spectral_init"])
def test_a_run_learns_and_tells_its_bytes(digits, method):
    row = next(row for row in list_rows("digits") if row.method == method)
    found = measure(row, digits, 1e-2, 0)
    assert 0.3 < found["measures"]["accuracy"] < 1
    assert found["measures"]["under attack"] < found["measures"]["accuracy"]
    assert found["bytes"]["state"] >= 2 * found["bytes"]["gradients"]
    losses = [loss for _, loss in found["curve"]]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_a_run_that_diverges_is_told_of(digits, monkeypatch):
    monkeypatch.setattr(type(digits), "loss", lambda *_: torch.tensor(math.inf, requires_grad=True))
    row = Row("optimizer", "adamw")
    assert "inf" in measure(row, digits, 1e-2, 0)["diverged"]
    assert math.isnan(tune(row, digits, 1e-2, 0))


def test_a_rate_that_diverged_is_not_chosen(tmp_path):
    results = Results(tmp_path / "results.json")
    for higher, best in ((True, 0.1), (False, 0.01)):
        run = []
        tune_and_run(
            results, f"{higher}", "a", {"name": "a"}, higher=higher, seeds=(0, 1),
            tune=lambda: {0.01: 1.0, 0.1: 2.0, 1.0: math.nan},
            run=lambda lr, seed, run=run: run.append((lr, seed)) or {"measures": {}},
        )  # fmt: skip
        assert run == [(best, 0), (best, 1)]
    tune_and_run(
        results, "True", "a", {}, higher=True, seeds=(0, 1, 2),
        tune=lambda: pytest.fail("tuned again"),
        run=lambda lr, seed: {"of": (lr, seed)},
    )  # fmt: skip
    assert results.get("True", "a, seed 1") == {
        "key": "a, seed 1", "seed": 1, "lr": 0.1, "name": "a", "measures": {}
    }  # fmt: skip
    assert results.get("True", "a, seed 2")["of"] == (0.1, 2)


def row(name, seed, perplexity, kind="optimizer"):
    sizes = {"weights": 1_000_000, "gradients": 0, "state": 0, "activations": 0}
    reached = {"measures": {"perplexity": perplexity}, "step_ms": 1.0, "slowest_ms": 2.0,
               "bytes": sizes, "curve": [[1.0, 3.0], [2.0, 2.0]]}  # fmt: skip
    if math.isnan(perplexity):
        reached = {"diverged": "the loss of step 3 is nan"}
    key = f"{name}, {kind}, seed {seed}"
    return {"key": key, "seed": seed, "name": name, "kind": kind, "lr": 0.01} | reached


def board(**reached):
    return [
        row(name, s, value) for name, values in reached.items() for s, value in enumerate(values)
    ]


def test_a_board_is_ordered_by_what_was_reached():
    rows = board(a=(30.0, 31.0), b=(20.0, 20.0), c=(10.0, math.nan))
    rows.append({"key": "d, factorize, error", "error": "ValueError: no"})
    page, plots = render_training({"small": rows, "environment": {"torch": "2"}})
    assert page.index("| b |") < page.index("| a |") < page.index("| c |")
    assert "| b | optimizer | 20.0 ± 0.0 |" in page
    assert "| a | optimizer | 30.5 ± 0.7 |" in page
    assert "| c | optimizer | diverged |" in page
    assert "| d, factorize | ValueError: no |" in page
    assert set(plots) == {"train-small.svg"}


def test_claims_are_judged_by_the_rows():
    rows = board(
        galore=(30.0, 31.0), fira=(20.0, 20.5), adamw=(19.0, 19.5), apollo=(19.1, math.nan)
    )
    page = claims.render_claims({"small": rows})
    verdicts = {
        (line.split("|")[1].split("]")[0].strip(" ["), line.split("|")[2].strip()):
        line.split("|")[-2].strip() for line in page.splitlines()[2:]
    }  # fmt: skip
    assert verdicts["Fira", "beats GaLore at equal rank (better)"] == "held"
    assert verdicts["GaLore", "is on par with full-rank Adam (close)"] == "not held"
    assert verdicts["APOLLO", "is on par with AdamW (close)"] == "not held"
    assert claims.render_claims({"small": board(adamw=(19.0, 19.5))}) == ""


def test_a_method_that_stayed_dense_proves_nothing():
    rows = board(adamw=(19.0, 19.5))
    rows += [row("cuttlefish", seed, 19.0, "factorize") for seed in range(2)]
    assert "| not tried: it never switched |" in claims.render_claims({"small": rows})


def test_codes_and_scales_are_what_a_quantised_state_holds():
    low_bit = pytest.importorskip("torchao.optim.subclass_8bit").OptimState8bit
    state = low_bit.zeros((64, 64), signed=True, block_size=256)
    assert stored_bytes(state) == 64 * 64 + 4 * 64 * 64 // 256 + 4 * 256
    assert stored_bytes(torch.zeros(3)) == 12


def test_claims_name_rows_and_papers_that_there_are():
    keys = {task: {row.key for row in list_rows(task)} for task in TASKS}
    for claim in claims.CLAIMS:
        assert claim.arxiv
        for task in claim.tasks:
            assert {claim.first, claim.second} <= keys[task], claim


def test_the_page_is_what_was_measured():
    found = json.loads((RESULTS / "train.json").read_text())
    docs = RESULTS.parent.parent / "docs"
    page, plots = render_training(found)
    assert (docs / "board-train.md").read_text() == page, "run python -m benchmarks.pages"
    for name, svg in plots.items():
        assert (docs / "plots" / name).read_text() == svg
