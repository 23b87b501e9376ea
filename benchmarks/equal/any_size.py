"""The section on one file loaded at many sizes, and what its paper says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.board.summary import link, number, table
from corank.registry import METHODS

ABOUT = """\
`bitstack` of the reference LM, saved once at 100% and loaded by `corank.load(folder, size=...)` at
the sizes below, of the linear layers' bfloat16 bytes (`python -m benchmarks.any_size`), on few
windows of text, the same for all sizes. The claim holds at a step where the smaller size is the
worse one, in and out of domain."""


def _measured(tables: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = [row for row in tables.get("sizes", []) if "measures" in row]
    return sorted(rows, key=lambda row: -row["reached"])


def claim_row(tables: Mapping[str, Any]) -> list[list[str]]:
    """The line of the table of claims; none where there is no step between two sizes."""
    rows = _measured(tables)
    if len(rows) < 2:
        return []
    steps = [_worse(more["measures"], less["measures"]) for more, less in pairwise(rows)]
    paper = METHODS["bitstack"].paper
    sides = [
        f"{row['reached']:.0%}: {number(row['measures']['in: perplexity'])}"
        for row in (rows[0], rows[-1])
    ]
    says = "quality falls smoothly with size, one file"
    name, held = link(paper.title, paper.arxiv), f"{sum(steps)} of {len(steps)} steps"
    return [[name, says, "reference LM", *sides, held]]


def render_sizes(tables: Mapping[str, Any]) -> list[str]:
    """The section; empty where nothing was measured."""
    rows = _measured(tables)
    if not rows:
        return []
    names = [f"{domain}: perplexity" for domain in ("in", "out")]
    shown = [[f"{row['reached']:.1%}", *_figures(row, names)] for row in rows]
    failed = [f"{row['share']:.0%}: {row['error']}." for row in tables["sizes"] if "error" in row]
    return [
        "## One file, any size", ABOUT, table(["bytes", *names], shown), *failed,
    ]  # fmt: skip


def _figures(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [number(row["measures"][name]) for name in names]


def _worse(more: Mapping[str, float], less: Mapping[str, float]) -> bool:
    return all(less[name] > more[name] for name in more)
