"""The board of adapters as a page: quality, forgetting and costs, and speed beside PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.board.summary import number, table
from benchmarks.tuning.judging import judge_adapters
from benchmarks.tuning.measure import FROZEN
from benchmarks.tuning.plots import plot_task
from benchmarks.tuning.rows import GRID, SEEDS
from benchmarks.tuning.summary import (
    MARKS,
    OWN,
    Entry,
    best_first,
    find,
    list_entries,
    list_errors,
)
from benchmarks.tuning.tasks import TASKS, Task

INTRODUCTION = """\
# The board: adapters

The adapters of corank, the frozen model and full fine-tuning, on three tasks.
`python -m benchmarks.adapt` measures, `python -m benchmarks.adapters` times beside PEFT,
`python -m benchmarks.pages` writes this page from `benchmarks/results`.

{tasks}

Adam, a rate that falls linearly to 0, no weight decay. Each row's peak rate is the best of
{grid} on tuning rows, for all methods alike and with a seed of its own; then it is run with
{seeds} other seeds. A rate at an end of that grid may not be the best there is. ± is the standard
deviation over seeds; no ± means one seed. Nothing was chosen on the evaluation rows. The runs are
short and the models small: what a method reaches in a long run on a large model is not measured.

A method stands here with its defaults, and where it has a rank also at the largest one that
trains no more numbers than LoRA of rank 2 and of rank 8. Times are processor seconds of one thread
on a machine shared with other work, starts with the model's loading; a step's bytes are the
activations kept for the backward pass, the gradients and Adam's state; a file is what
`corank.save_adapter` writes."""


def render_board(board: dict[str, Any], speeds: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The page, and its plots by file name."""
    tasks = "\n".join(f"- **{t.name}**: {_about(t)}" for t in TASKS.values())
    grid = ", ".join(f"{rate:g}" for rate in GRID)
    parts = [INTRODUCTION.format(tasks=tasks, grid=grid, seeds=len(SEEDS))]
    plots: dict[str, str] = {}
    for task in TASKS.values():
        rows = board.get(task.name, [])
        if entries := list_entries(rows):
            plots[f"adapt-{task.name}.svg"] = plot_task(entries, task)
            parts += [f"## {task.name}", f"![{task.quality}](plots/adapt-{task.name}.svg)"]
            parts += _tables(entries, task)
            parts += _errors(list_errors(rows))
        else:
            parts += [f"## {task.name}", "Not measured yet."]
    parts += _speeds(speeds) + _products(speeds.get("products", []))
    return "\n\n".join([*parts, _environment(board)]) + "\n", plots


def _about(task: Task) -> str:
    """The task's docstring in one line."""
    about = " ".join((type(task).__doc__ or "").split())
    return f"{about} {task.steps} steps."


def _tables(entries: Sequence[Entry], task: Task) -> list[str]:
    marks = [e for e in entries if e.method in MARKS]
    parts = []
    for budget in sorted({e.budget for e in entries}, key=lambda b: (b != OWN, b)):
        own = [e for e in entries if e.budget == budget and e.method not in MARKS]
        title = "With their defaults" if budget == OWN else f"No more numbers than {budget}"
        ordered = [*marks, *best_first(own, task.quality)]
        parts += [f"### {title}", _table(ordered, entries, task)]
    return parts


def _table(shown: Sequence[Entry], entries: Sequence[Entry], task: Task) -> str:
    to = {"LoRA": "lora", "frozen": FROZEN}
    steps = {f"step over {title}'s": _seconds(find(entries, key)) for title, key in to.items()}
    steps = {title: seconds for title, seconds in steps.items() if seconds}
    header = ["method", "parameters", task.quality, task.forgetting, "trainable", "file kB",
              *steps, "step MB", "load and start s", "rate"]  # fmt: skip
    return table(header, [
        [e.method, e.parameters or "-", e.text(task.quality), e.text(task.forgetting),
         f"{e.trainable:,}", _scaled(e.mean("file_bytes"), 1e3),
         *(number(taken / seconds if (taken := _seconds(e)) else None, 2)
           for seconds in steps.values()),
         _scaled(e.mean("step_bytes") or None, 1e6),
         "-" if e.method in MARKS else number(e.mean("start_seconds"), 2),
         f"{e.mean('lr'):g}"]
        for e in shown
    ])  # fmt: skip


def _seconds(entry: Entry | None) -> float:
    return (entry.mean("step_seconds") or 0.0) if entry is not None else 0.0


def _scaled(value: float | None, unit: float) -> str:
    return number(None if value is None else value / unit, 1)


def _errors(errors: list[tuple[str, str]]) -> list[str]:
    if not errors:
        return []
    rows = [[key, " ".join(reason.replace("|", "/").split())] for key, reason in errors]
    return ["### Does not apply", table(["row", "reason"], rows)]


def _speeds(speeds: dict[str, Any]) -> list[str]:
    rows = speeds.get("adapters", [])
    if not rows:
        return []
    steps = [
        [r["key"].removeprefix("step "), *(f"{1e3 * r['seconds'][who]:.1f}" for who in _WHO),
         *(f"{r['saved_bytes'][who] / 1e6:.1f}" for who in _WHO),
         *(f"{r['trainable'][who]:,}" for who in _WHO[1:])]
        for r in rows if "saved_bytes" in r
    ]  # fmt: skip
    header = ["method", *(f"ms, {who}" for who in _WHO), *(f"saved MB, {who}" for who in _WHO),
              *(f"trainable, {who}" for who in _WHO[1:])]  # fmt: skip
    parts = ["## Speed beside PEFT", table(["what", "to reach", "reached", ""],
                                           judge_adapters(speeds))]  # fmt: skip
    if steps:
        about = (
            "A training step (forward and backward) of eight square linear layers of 1024, 512 "
            "rows, in interleaved rounds; the base is the frozen model with no adapter, saved is "
            "what autograd keeps for the backward pass besides parameters:"
        )
        parts += [about, table(header, steps)]
    return parts


PRODUCTS = """\
### Why VeRA and RandLoRA take PEFT's time

Both libraries spend it in the same matrix products, and no other order of them is twice as fast at
this size. In multiply-adds for n rows and a weight of w x w, above the frozen layer's own 2 n w^2:

- VeRA, W + diag(b) B diag(d) A: x A^T, that times B^T, the output's gradient times B, that times A,
  4 n w r; the gradients of b and d are sums over elements. Adding the change to W first saves what
  x takes of both passes, but then b and d need x A^T and its product with the output's gradient:
  w^2 r + 2 n w r, as many for n = w / 2.
- RandLoRA, W + B A' of full rank: the same four with w in place of r, and one for the gradient of
  A', 5 n w^2. Added to W first, w^3 + 2 n w^2: four fifths of that for n = w / 2. Or the gradients
  of x and of g come of one product, T = (u l) A for each row apart, 4 n w^2, but T has
  n w^2 / r entries, and the passes over them take what is saved.

Measured by hand, one layer of 1024, `python -m benchmarks.products`; passes over elements included.
Half of what stands would be reached by adding to W first where the rows are thousands. corank does
not do that: it holds a matrix of W's size from one pass to the other."""


def _products(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        [row["key"], form, f"{row['multiply_adds'][form] / 1e9:.2f}", f"{1e3 * seconds:.1f}",
         f"{seconds / row['seconds']['as it stands']:.2f}"]
        for row in rows for form, seconds in row["seconds"].items()
    ]  # fmt: skip
    header = ["case", "form", "multiply-adds, 1e9", "ms above the layer", "of as it stands"]
    return [PRODUCTS, table(header, lines)] if lines else []


_WHO = ("base", "corank", "peft")


def _environment(board: dict[str, Any]) -> str:
    found = board.get("environment", {})
    return "## Versions\n\n" + ", ".join(f"{k} {v}" for k, v in sorted(found.items()))
