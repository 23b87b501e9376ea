"""The page on optimisers says what was measured."""

import json
from pathlib import Path

from benchmarks.optim_page import render_optimizers

ROOT = Path(__file__).parents[2]


def read(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_the_page_is_what_was_measured():
    found, kept = read("optim.json"), read("activation.json")
    page = (ROOT / "docs" / "board-optim.md").read_text()
    assert page == render_optimizers(found, kept)
    alone = next(row for row in found["optim"] if "over_adamw" in row)
    line = next(line for line in page.splitlines() if line.startswith("| GaLore | "))
    assert f"{alone['over_adamw']['GaLore']:.3f}"[:4] in line
    assert page.count("| compact 1/8 |") == sum(r["kind"] == "compact 1/8" for r in kept["rows"])
