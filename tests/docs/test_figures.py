"""The README's figures are those of the results that the benchmarks wrote."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def row(start):
    """The cells of a row of the README, after its name."""
    line = next(line for line in README.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def figures(cell):
    """The numbers of a cell, links left out."""
    return [float(n) for n in re.findall(r"\d+\.\d+", re.sub(r"\(\[.*\)", "", cell))]


def test_decoding_is_as_fast_as_measured():
    speed = {
        r["key"]: r["speeds"]["1"]["decode over dense"] for r in results("decode.json")["decode"]
    }
    ours, *_, theirs = row("decoding one sequence")
    forms = ("4-bit codes, for inference", "8-bit codes, for inference", "low rank, half")
    assert figures(ours) == [round(speed[form], 1) for form in forms]
    assert figures(theirs) == [round(speed[form], 1) for form in ("torchao int4", "torchao int8")]


def test_factorising_is_as_fast_as_measured():
    large = {tuple(r["shape"]): r for r in results("factorise.json")["results"]}
    cell = row("factorising 4096 x 4096, 11008 x 4096")[0]
    found = [large[4096, 4096], large[11008, 4096]]
    assert figures(cell)[:2] == [pytest.approx(r["speedup"], abs=0.05) for r in found]
    assert all(abs(r["loss_ratio"] - 1) < 0.001 for r in found)
