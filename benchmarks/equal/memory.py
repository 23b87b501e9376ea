"""The section on memory: what loading and running a compressed model takes, from its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.board.summary import number, table

ABOUT = """\
Resident bytes over the {stored:.0f} MB that the dense model's files hold, beyond those of the
libraries, of a random LLaMA of width 1024 and 24 layers in bfloat16 on the CPU (`python -m
benchmarks.peaks`), each form in a process of its own. Plain `from_pretrained` leaves weights in the
mapped file until they are used, so loading shows what is made beside them, and running, a prefill
of 128 tokens and 8 tokens decoded, what is in the files and the room for work: codes are decoded
one matrix at a time. One run each: repeated, they differ by some 0.05, as freed memory is not
always given back. Where a form is made after loading, its files are the dense model's."""


def render_memory(tables: Mapping[str, Any]) -> list[str]:
    """The section on memory; empty where nothing was measured."""
    rows = tables.get("peaks", [])
    dense = next((row["stored"] for row in rows if row["key"] == "dense"), None)
    if dense is None:
        return []
    names = {
        "stored": "in files", "loading": "peak of loading", "loaded": "loaded",
        "running": "peak of running",
    }  # fmt: skip
    shown = [
        [row["key"], *(number(row[name] / dense, 2) for name in names)]
        for row in sorted(rows, key=lambda row: -row["stored"])
    ]
    return [
        "## Memory", ABOUT.format(stored=dense / 1e6), table(["form", *names.values()], shown),
        *tables.get("notes", []),
    ]  # fmt: skip
