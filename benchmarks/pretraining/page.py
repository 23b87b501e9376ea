"""The board of training as a page."""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import Any

from benchmarks.board.summary import table
from benchmarks.pretraining.rows import GRID, SEEDS
from benchmarks.pretraining.task import BATCH, LENGTH, SIZES, Size

INTRODUCTION = """\
# The board: training

Small LLaMAs in the reference model's shape, pretrained on sources of the standard library.
`corank bench train` measures, `python -m benchmarks.pages` writes this page. All methods see the
same tokens in the same order. Each row's peak rate is the best of {grid} on tuning text, with a
seed of its own; then it is run with {seeds} other seeds and judged on packages that were held out.
A rate at an end of the grid may not be the best there is. Ranks are a quarter of the width; all
other parameters are the methods' defaults, refreshes at most 20 steps apart. The rate rises for a
tenth of the run and falls linearly. Embeddings, head and norms train in full everywhere.

± is the standard deviation over seeds. Times are processor milliseconds of one thread on a machine
shared with other work. The runs are short and the models small: what a method reaches in a long run
of a large model is not measured."""


def render_training(board: dict[str, Any]) -> str:
    """The page; figures only from the results."""
    grid = ", ".join(f"{rate:g}" for rate in GRID)
    parts = [INTRODUCTION.format(grid=grid, seeds=len(SEEDS))]
    for size in SIZES.values():
        if rows := board.get(size.name):
            parts += [_title(size), _table(rows)]
            if failed := [[r["key"], r["error"]] for r in rows if "error" in r]:
                parts += ["### Does not apply", table(["row", "reason"], failed)]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(board.get("environment", {}).items()))
    return "\n\n".join([*parts, f"## Versions\n\n{versions}"]) + "\n"


def _title(size: Size) -> str:
    return (
        f"## {size.name}\n\nWidth {size.hidden}, {size.layers} layers, {size.steps} steps of "
        f"{BATCH} rows of {LENGTH} tokens."
    )


def _table(rows: list[dict[str, Any]]) -> str:
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "seed" in row:
            runs.setdefault((row["method"], row["kind"]), []).append(row)
    ordered = sorted(runs.items(), key=lambda item: _order([r["loss"] for r in item[1]]))
    header = ["method", "kind", "perplexity", "weights MB", "gradients", "state", "activations",
              "step ms", "slowest", "rate"]  # fmt: skip
    return table(header, [
        [method, kind, _perplexity([r["loss"] for r in found]),
         *(f"{found[0]['bytes'][part] / 1e6:.2f}"
           for part in ("weights", "gradients", "state", "activations")),
         f"{mean(r['step_ms'] for r in found):.1f}", f"{mean(r['slowest_ms'] for r in found):.1f}",
         f"{found[0]['lr']:g}"]
        for (method, kind), found in ordered
    ])  # fmt: skip


def _order(losses: list[float]) -> float:
    return math.inf if any(map(math.isnan, losses)) else mean(losses)


def _perplexity(losses: list[float]) -> str:
    if any(map(math.isnan, losses)):
        return "diverged"
    values = [math.exp(loss) for loss in losses]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
