"""The pages on training: what was counted and measured, and nothing typed."""

import json

import torch

from benchmarks.memory_page import render_memory
from benchmarks.pages import RESULTS
from benchmarks.pretraining.page import render_training
from benchmarks.pretraining.rows import list_rows
from benchmarks.pretraining.task import SIZES, batches
from corank.training import optimizers


def test_the_page_of_bytes_is_what_was_counted():
    found = json.loads((RESULTS / "memory.json").read_text())
    assert (RESULTS.parent.parent / "docs" / "train-memory.md").read_text() == render_memory(found)
    for row in found["rows"]:
        assert row["adamw"]["weights"] > 2 * row["parameters"]  # and buffers
        assert row["galore"]["state"] < row["adamw"]["state"]


def test_every_optimiser_has_a_row_at_the_ranks_of_the_size():
    rows = {row.key: dict(row.parameters) for row in list_rows(SIZES["small"])}
    assert {f"{key}, optimizer" for key in optimizers()} <= set(rows)
    assert rows["galore, optimizer"] == {"rank": 24, "every": 20}
    assert rows["lora, adapt"] == {"rank": 24}
    assert rows["dct_adamw, optimizer"]["every"] == 1


def test_all_methods_see_the_same_tokens(monkeypatch):
    monkeypatch.setattr(
        "benchmarks.pretraining.task.tokens", lambda split: torch.arange(640).view(10, 64)
    )
    first, again = batches(SIZES["small"], 1), batches(SIZES["small"], 1)
    assert first.shape == (100, 8, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, batches(SIZES["small"], 2))


def test_a_board_is_ordered_by_what_was_reached():
    sizes = {"weights": 1_000_000, "gradients": 0, "state": 0, "activations": 0}
    rows = [
        {"key": f"{m}, seed {s}", "seed": s, "method": m, "kind": "optimizer", "lr": 0.01,
         "loss": loss, "step_ms": 1.0, "slowest_ms": 2.0, "bytes": sizes}
        for m, losses in {"a": (3.0, 3.1), "b": (2.0, 2.0), "c": (1.0, float("nan"))}.items()
        for s, loss in enumerate(losses)
    ]  # fmt: skip
    rows.append({"key": "d, error", "error": "ValueError: no"})
    page = render_training({"small": rows, "environment": {"torch": "2"}})
    assert page.index("| b |") < page.index("| a |") < page.index("| c |")
    assert "| b | optimizer | 7.4 ± 0.0 |" in page
    assert "diverged" in page
    assert "| d, error | ValueError: no |" in page
