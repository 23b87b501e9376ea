"""The pages on adapters: what was measured, brought together, judged and told."""

import json

import pytest

from benchmarks import pages
from benchmarks.board.store import Results
from benchmarks.tuning.judging import ABOVE_BASE, judge_adapters
from benchmarks.tuning.rows import list_rows, matched
from benchmarks.tuning.summary import list_entries, list_errors, share_of_gain
from benchmarks.tuning.tasks import TASKS

DIGITS = TASKS["digits"]


def rows(method, qualities, budget="own", forgotten=0.5, **more):
    made = {
        "method": method, "budget": budget, "parameters": {}, "lr": 0.005, "trainable": 1000,
        "file_bytes": 5000, "step_seconds": 0.02, "step_bytes": 4_000_000, "start_seconds": 0.01,
    } | more  # fmt: skip
    return [
        made | {
            "key": f"{method}, {budget}, seed {seed}",
            "measures": {"accuracy turned": q, "accuracy upright": forgotten},
        }
        for seed, q in enumerate(qualities)
    ]  # fmt: skip


@pytest.fixture
def board():
    return {
        "digits": [
            *rows("frozen", [0.1] * 3, trainable=0, step_seconds=0.0, step_bytes=0),
            *rows("full fine-tuning", [0.97, 0.98, 0.99], trainable=90_000, forgotten=0.2),
            {"key": "lora, own, rate", "lr": 0.005, "tuned": [[0.005, 0.9]]},
            *rows("lora", [0.88, 0.9, 0.92], file_bytes=9000),
            *rows("dora", [0.93, 0.95, 0.97], trainable=1100, forgotten=0.6),
            *rows("vera", [0.3, 0.3, 0.3], trainable=10),
            *rows("hra", [0.88, 0.9, 0.89], trainable=500, step_seconds=0.01),
            *rows("hra", [0.85, 0.86, 0.84], "LoRA r2", parameters={"rank": 3}, trainable=250),
            {"key": "bone, own, error", "error": "SiteError: 3 | not\ndivisible"},
            {"key": "lora, own, error", "error": "an old one"},
        ],
        "environment": {"torch": "2"},
    }


@pytest.fixture
def results(tmp_path, board):
    (tmp_path / "adapt.json").write_text(json.dumps(board))
    return tmp_path


def line(page, *beginnings):
    return next(x for x in page.splitlines() if any(x.startswith(b) for b in beginnings))


def test_seeds_are_brought_together(board):
    lora = next(e for e in list_entries(board["digits"]) if e.method == "lora")
    assert lora.measure("accuracy turned") == pytest.approx(0.9)
    assert lora.text("accuracy turned") == "0.900 ± 0.020"
    assert lora.text("accuracy upright") == "0.500 ± 0.000"


def test_errors_of_rows_that_were_made_since_are_left_out(board):
    assert list_errors(board["digits"]) == [("bone, own", "SiteError: 3 | not\ndivisible")]
    del board["digits"][-3]
    board["digits"] = [r for r in board["digits"] if r["key"] != "lora, own, seed 2"]
    assert ("lora, own", "an old one") in list_errors(board["digits"])


def test_a_gain_is_a_share_of_loras(board):
    entries = list_entries(board["digits"])
    shares = {e.method: share_of_gain(e, entries, DIGITS) for e in entries if e.budget == "own"}
    assert shares["lora"] == 1
    assert shares["vera"] == pytest.approx(0.25)
    assert share_of_gain(entries[0], entries[:1], DIGITS) is None


def test_less_is_better_where_it_is(board):
    prose = TASKS["prose"]
    made = [
        *rows("frozen", [0]), *rows("lora", [0]), *rows("dora", [0]),
    ]  # fmt: skip
    for row, value in zip(made, (100.0, 80.0, 70.0), strict=True):
        row["measures"] = {prose.quality: value, prose.forgetting: 20.0}
    entries = list_entries(made)
    assert share_of_gain(entries[0], entries, prose) == 1.5


def test_the_board_has_every_row_best_first(results):
    page, plots = pages.render_adapters(results)["board-adapt.md"]
    defaults = page.split("### With their defaults")[1].split("###")[0]
    order = [row.split(" | ")[0][2:] for row in defaults.strip().splitlines()[2:]]
    assert order == ["frozen", "full fine-tuning", "dora", "lora", "hra", "vera"]
    found = line(defaults, "| dora")
    assert "| 0.950 ± 0.020 | 0.600 ± 0.000 | 1,100 | 5.0 | 1.00 | 4.0 |" in found
    assert "| hra | rank=3 |" in page.split("### No more numbers than LoRA r2")[1]
    assert "| bone, own | SiteError: 3 / not divisible |" in page
    assert list(plots) == ["adapt-digits.svg"]
    assert pages.render_adapters(results)["board-adapt.md"] == (page, plots)


def test_the_board_says_what_the_products_cost(results):
    row = {
        "key": "VeRA r256, 512 rows",
        "seconds": {"as it stands": 0.02, "added to W first": 0.017},
        "multiply_adds": {"as it stands": 5e8, "added to W first": 4e8},
    }
    Results(results / "adapters.json").add("products", row)
    page, _ = pages.render_adapters(results)["board-adapt.md"]
    assert "| VeRA r256, 512 rows | added to W first | 0.40 | 17.0 | 0.85 |" in page


def test_the_guide_says_what_the_rows_say(results):
    guide, _ = pages.render_adapters(results)["which-adapter.md"]
    assert "accuracy turned from 0.100 to 0.900 ± 0.020" in guide
    assert "told apart from LoRA: digits: 1 better and 1 worse of 3" in guide
    assert "Full fine-tuning: digits: 0.980 ± 0.010 (LoRA 0.900 ± 0.020)" in guide
    assert "Less than 50% of LoRA's gain in so few steps: digits: `vera`" in guide
    assert "`dora` gains the most on average: 106% of LoRA's gain" in guide
    assert line(guide, "| the best quality, at any").endswith("| `dora`: 0.950 ± 0.020 |")
    assert "| `hra` (rank=3): 250 (LoRA 1,000) |" in line(guide, "| few trained numbers")
    assert "`hra`: 10.0 ms (LoRA 20.0 ms)" in line(guide, "| a quick step")
    assert "`dora`: accuracy upright 0.600 ± 0.000" in line(guide, "| little forgotten")
    assert "| `lora`: 4.0 MB |" in line(guide, "| little memory")  # all alike: nothing to gain
    assert line(guide, "| the best quality with no more numbers than LoRA r8").endswith("| - |")


def test_nothing_measured_makes_no_page(tmp_path, board):
    assert pages.render_adapters(tmp_path) == {}
    board["digits"] = [r for r in board["digits"] if r.get("method") != "frozen"]
    (tmp_path / "adapt.json").write_text(json.dumps(board))
    assert list(pages.render_adapters(tmp_path)) == ["board-adapt.md"]


def step(method, time_above, saved_above, time_ratio=0.9):
    return {
        "key": f"step {method} r16", "time_above_base": time_above,
        "saved_above_base": saved_above, "time_ratio": time_ratio,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "verdicts"),
    [
        (step("LoRA", 2.0, 1.0), ["met", "met"]),
        (step("LoRA", 0.5, 1.2, 1.1), ["not met", "not met"]),
        (step("DoRA", 0.5, 3.0), ["met"]),
        (step("VeRA", 0.51, 0.1), ["not met"]),
        (step("HRA", 0.09, 0.2), ["met", "not met"]),
        (step("Other", 9.0, 9.0), []),
        (
            {"key": "start PiSSA 4096 x 4096 r16", "ratio": 0.7, "residual_ratio": 1.01},
            ["met", "not met"],
        ),
        (
            {
                "key": "start PiSSA r16, every linear layer of the reference model", "ratio": 1.2,
                "seconds": {"first load": 1.0, "first adapt": 1.2, "load again": 0.1},
            },
            ["not met"],
        ),
        (
            {
                "key": "inference LoRA r16, batch 1", "ratio": 0.4,
                "microseconds_above_base_per_layer": {"corank": 4.0, "peft": 10.0},
            },
            ["met"],
        ),
        ({"key": "wrapping 1000 layers", "speedup": 2.9}, ["not met"]),
    ],
)  # fmt: skip
def test_speeds_are_judged(row, verdicts):
    judged = judge_adapters({"adapters": [row]})
    assert [r[-1] for r in judged if r[0].startswith(row["key"])] == verdicts
    missing = [r for r in judged if r[-1] == "not measured"]
    assert len(missing) == 5 + len(ABOVE_BASE) - (0 if "Other" in row["key"] else 1)


def test_both_loads_are_told():
    row = {
        "key": "start PiSSA r16, every linear layer of the reference model", "ratio": 0.5,
        "seconds": {"first load": 2.0, "first adapt": 1.0, "load again": 0.25},
    }  # fmt: skip
    reached = judge_adapters({"adapters": [row]})[0][2]
    assert "first load in the process 2.00 s, a second load 0.25 s" in reached


def test_a_method_that_wants_more_than_a_rank_is_not_matched():
    assert matched(DIGITS, "eigenlorax", 2) is None
    assert dict(matched(DIGITS, "lora", 2).parameters) == {"rank": 2}


@pytest.mark.slow
def test_every_adapter_has_rows_within_the_budgets():
    import corank
    from corank.models import find_sites

    found = list(list_rows(DIGITS))
    assert len({row.key for row in found}) == len(found)
    sites = find_sites(DIGITS.load(), DIGITS.targets)
    for row in found:
        if row.budget != "own":
            most = corank.registry.find_method("lora").recipe({"rank": int(row.budget[-1])})
            made = corank.registry.find_method(row.method).recipe(dict(row.parameters))
            assert made.count(sites) <= most.count(sites), row.key
