"""The board of training as a page."""

from __future__ import annotations

from typing import Any

from benchmarks.board.summary import table
from benchmarks.training.entries import Entry, list_entries
from benchmarks.training.plots import plot_training
from benchmarks.training.rows import GRIDS, SEEDS
from benchmarks.training.tasks import ATTACK, BATCH, LENGTH, NOISE, RANKS, TASKS, Language
from benchmarks.tuning.tasks import Task

INTRODUCTION = f"""\
# The board: training

Every optimiser and every factorisation of corank, trained side by side. `corank bench train`
measures, `python -m benchmarks.pages` writes this page.

- **small**, **medium**: LLaMAs in the reference model's shape learn sources of the standard library
  from random weights; perplexity is on packages that were held out. Embeddings and norms train in
  full everywhere; factorisations and adapters replace the blocks' linear layers.
- **packages**: MiniLM learns in full which package a docstring belongs to (the adapters' task), by
  every optimiser, and by the factorisations that start from the trained weights as they are.
- **digits**: a convolutional network learns digits from random weights, by every factorisation.
  Noise is Gaussian, of deviation {NOISE:g}; an attack moves each pixel by {ATTACK:g} along the sign
  of its gradient.

All methods see the same batches in the same order. Each row's peak rate is the best of its task's
grid on tuning data, with a seed of its own; then it is run with other seeds. All but rank and
refreshes are the methods' defaults: ranks are a quarter of the width (digits: {RANKS["digits"]}),
refreshes at most 20 steps apart, with a warm-up after them that is as long a share; Cuttlefish
looks and ranks increment every 3 steps, or the run would end first. The rate rises for a tenth of
the run and falls linearly. "plain low rank" is a product of two factors.

± is the standard deviation over seeds. Times are processor milliseconds of one thread on a machine
shared with other work. Activations are what one step keeps for its backward pass. The runs are
short and the models small: what a method reaches in a long run of a large model is not measured,
and methods whose gain comes late, or that take many steps to choose ranks, are at a disadvantage: a
method that ends with as many weights as adamw has never switched. Weights do not decay, so
cautious_wd is adamw here.
The modules of `corank.cells` replace no weights and have no rows."""


def render_training(board: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The page, and its plots by file name; figures only from the results."""
    parts, plots = [INTRODUCTION], {}
    for task in TASKS.values():
        rows = board.get(task.name, [])
        if entries := list_entries(rows, task.quality, task.higher):
            parts.append(_title(task))
            if isinstance(task, Language):
                plots[f"train-{task.name}.svg"] = plot_training(entries, task.quality)
                parts.append(f"![{task.name}](plots/train-{task.name}.svg)")
            parts.append(_table(entries))
        if failed := [[r["key"].removesuffix(", error"), r["error"]] for r in rows if "error" in r]:
            parts += ["Does not apply:", table(["row", "reason"], failed)]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(board.get("environment", {}).items()))
    return "\n\n".join([*parts, f"## Versions\n\n{versions}"]) + "\n", plots


def _title(task: Task) -> str:
    grid = ", ".join(f"{rate:g}" for rate in GRIDS[task.name])
    shape = ""
    if isinstance(task, Language):
        shape = (
            f"Width {task.hidden}, {task.layers} layers, {BATCH} rows of {LENGTH} tokens a step. "
        )
    return (
        f"## {task.name}\n\n{shape}{task.steps} steps; rates {grid}; {len(SEEDS[task.name])} seeds."
    )


def _table(entries: list[Entry]) -> str:
    whole = next(e for e in entries if not e.diverged)
    measures = list(whole.rows[0]["measures"])
    parts = ("weights", "gradients", "state", "activations")
    header = ["method", "kind", *measures, "weights MB", *parts[1:], "step ms", "slowest", "rate"]
    return table(header, [
        [e.name, e.kind, *(e.text(measure) for measure in measures),
         *(["-"] * 6 if e.diverged else
           [*(f"{e.mean('bytes', part) / 1e6:.2f}" for part in parts),
            f"{e.mean('step_ms'):.1f}", f"{e.mean('slowest_ms'):.1f}"]),
         f"{e.rows[0]['lr']:g}"]
        for e in entries
    ])  # fmt: skip
