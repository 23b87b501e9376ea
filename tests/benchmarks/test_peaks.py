"""The board of peaks: a form that is measured in a child of a light parent, and its section."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.equal.memory import render_memory

ROOT = Path(__file__).parents[2]


def test_the_parent_imports_nothing_large():
    code = "import sys, benchmarks.peaks; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.skipif(sys.platform != "linux", reason="resident bytes are read from /proc")
def test_a_peak_is_of_its_phase_alone():
    from benchmarks.peaking.measure import reset_peak, resident

    size = 1 << 26
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    assert resident("VmHWM") >= size
    del held
    reset_peak()
    before = resident()
    assert abs(resident("VmHWM") - before) < size / 2


def test_forms_repeat_one_layer():
    from benchmarks.peaking.make import build

    model = build([{"round_to_nearest": {"bits": 4}}], 64, 3)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]
    codes = {layer.mlp.up_proj.operator.codes.data_ptr() for layer in model.model.layers}
    assert len(codes) == 3
    assert model.config.num_hidden_layers == 3


def test_memory_is_shown_over_the_dense_files():
    rows = [
        {"key": key, "stored": size, "loading": 10, "loaded": 5, "running": 2 * size}
        for key, size in (("codes", 25), ("dense", 100))
    ]
    text = "\n".join(render_memory({"peaks": rows, "notes": ["a note"]}))
    assert "| dense | 1.00 | 0.10 | 0.05 | 2.00 |\n| codes | 0.25 | 0.10 | 0.05 | 0.50 |" in text
    assert text.endswith("a note")
    assert render_memory({}) == []


def test_what_was_measured_runs_below_the_dense_model():
    tables = json.loads((ROOT / "benchmarks" / "results" / "peaks.json").read_text())
    rows = {row["key"]: row for row in tables["peaks"]}
    assert len(rows) == 9
    for key in ("low rank, half", "8-bit codes", "4-bit codes", "channels, half"):
        assert rows[key]["running"] < 0.75 * rows["dense"]["running"]
        assert rows[key]["loading"] < rows["dense"]["stored"] / 2
