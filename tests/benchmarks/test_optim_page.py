"""The page on optimisers says what was measured."""

import json
from pathlib import Path

from benchmarks.optim_page import render_optimizers

ROOT = Path(__file__).parents[2]


def read(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_the_page_is_what_was_measured():
    found, kept, structured = map(read, ("optim.json", "activation.json", "structured.json"))
    page = (ROOT / "docs" / "board-optim.md").read_text()
    assert page == render_optimizers(found, kept, structured)
    alone = next(row for row in found["optim"] if "over_adamw" in row)
    line = next(line for line in page.splitlines() if line.startswith("| GaLore | "))
    assert f"{alone['over_adamw']['GaLore']:.3f}"[:4] in line


def test_activations_are_means_over_seeds():
    kept = read("activation.json")
    page = (ROOT / "docs" / "board-optim.md").read_text()
    runs = [r for r in kept["rows"] if (r["model"], r["kind"]) == ("minilm", "compact 1/8")]
    assert len(runs) == kept["arguments"]["seeds"] > 1
    (line,) = (line for line in page.splitlines() if line.startswith("| minilm | compact 1/8 |"))
    for of in ("kept_bytes", "loss"):
        assert f"| {sum(r[f'{of}_ratio'] for r in runs) / len(runs):.3f} " in line


def test_structured_weights_are_measured_at_half_the_numbers():
    for row in read("structured.json")["steps"]:
        ratios = {k: v for k, v in row["parameters_over_dense"].items() if k != "dense"}
        assert all(0.49 < v < 0.51 for v in ratios.values())
