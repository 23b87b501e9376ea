"""The board of adapters makes the same run once."""

import pytest

from benchmarks import adapt
from benchmarks.board.store import Results
from benchmarks.tuning.rows import SEEDS, Row


def results_with(tmp_path, row):
    results = Results(tmp_path / "adapt.json")
    results.add("digits", {"key": f"{row.key}, rate", "lr": 0.01})
    for seed in SEEDS:
        results.add("digits", {
            "key": f"{row.key}, seed {seed}", "seed": seed, "lr": 0.01, "method": row.method,
            "budget": row.budget, "parameters": dict(row.parameters), "measures": {"x": seed},
        })  # fmt: skip
    return results


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    def run(*args):
        raise RuntimeError("a run was made")

    eight = (("rank", 8),)
    rows = [
        Row("lora", "own"), Row("lora", "LoRA r8", eight), Row("lora", "LoRA r2", (("rank", 2),)),
        Row("rslora", "LoRA r8", eight),
    ]  # fmt: skip
    monkeypatch.setattr(adapt, "list_rows", lambda task: rows)
    monkeypatch.setattr(adapt, "tune", run)
    return rows


def test_a_row_with_the_parameters_of_another_takes_its_figures(tmp_path, few_rows):
    own, same, *_ = few_rows
    results = results_with(tmp_path, own)
    adapt.make(results, "digits", same)
    for seed in SEEDS:
        found = results.get("digits", f"{same.key}, seed {seed}")
        assert (found["budget"], found["parameters"]) == ("LoRA r8", {"rank": 8})
        assert (found["measures"], found["lr"]) == ({"x": seed}, 0.01)
    assert results.get("digits", f"{same.key}, rate")["lr"] == 0.01


def test_other_parameters_other_methods_and_rows_half_made_are_run(tmp_path, few_rows):
    own, same, other, method = few_rows
    results = results_with(tmp_path, own)
    for row in (other, method):
        with pytest.raises(RuntimeError, match="a run was made"):
            adapt.make(results, "digits", row)
    half = results_with(tmp_path / "half", own)
    half.tables["digits"] = half.tables["digits"][:-1]
    half.write()
    with pytest.raises(RuntimeError, match="a run was made"):
        adapt.make(half, "digits", same)


def test_what_would_take_hours_is_refused_with_its_size():
    task = adapt.TASKS["digits"]
    adapt.require_feasible(task, Row("tera", "own"))
    adapt.require_feasible(task, Row("lora", "own"))
    with pytest.raises(ValueError, match=r"not run: .* \d+,\d+,\d+,\d+ frozen random numbers"):
        adapt.require_feasible(task, Row("tera", "LoRA r8", (("rank", 200),)))
