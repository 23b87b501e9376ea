"""The guide "which adapter": what the board's rows say, in few lines; every figure is a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from benchmarks.board.summary import number, table
from benchmarks.tuning.measure import FROZEN, FULL
from benchmarks.tuning.rows import BUDGETS, SEEDS
from benchmarks.tuning.summary import (
    MARKS,
    OWN,
    Entry,
    alike,
    best_first,
    find,
    goodness,
    list_entries,
    share_of_gain,
)
from benchmarks.tuning.tasks import TASKS, Task

#: As good as LoRA, for one who wants something else of it: this share of what LoRA gained.
ENOUGH, LITTLE = 0.9, 0.5
INTRODUCTION = """\
# Which adapter

Written by `python -m benchmarks.pages` from `benchmarks/results`; [the board](board-adapt.md) has
all rows and says how they were measured: {tasks},
{seeds} seeds each, rates tuned alike. They are short runs on small models, and the best of many
rows is flattered by having been picked. On your model try two or three: `corank.adapt(model, key)`
is the same call for all, and `corank adapt FOLDER --method KEY --dry-run` counts before anything is
loaded.

A row's gain is its quality less the frozen model's, as a share of LoRA's gain at its defaults. Two
rows are told apart where their means differ by more than their standard deviations together."""


def render_guide(board: dict[str, Any]) -> str:
    """The page. Tasks on which LoRA or the frozen model is missing are left out."""
    found = {t: list_entries(board.get(t.name, [])) for t in TASKS.values()}
    found = {t: entries for t, entries in found.items() if _complete(entries, t)}
    if not found:
        return ""
    tasks = ", ".join(f"{t.name} ({t.quality})" for t in found)
    parts = [
        INTRODUCTION.format(tasks=tasks, seeds=len(SEEDS)),
        "## In short", "\n".join(_advice(found)),
        "## By what you want", _answers(found),
    ]  # fmt: skip
    if across := _across(found):
        parts += ["## Across the tasks", _defaults(found, across)]
    return "\n\n".join(parts) + "\n"


Found = dict[Task, list[Entry]]


def _complete(entries: Sequence[Entry], task: Task) -> bool:
    lora = find(entries, "lora")
    return lora is not None and share_of_gain(lora, entries, task) is not None


def _advice(found: Found) -> list[str]:
    lines = ["- LoRA at its defaults: " + _each(found, _lora_line) + "."]
    lines.append("- At their defaults, told apart from LoRA: "
                 + _each(found, _told_apart) + ".")  # fmt: skip
    if any(find(entries, FULL) for entries in found.values()):
        lines.append("- Full fine-tuning: " + _each(found, _full_line) + ".")
    if across := _across(found):
        (name, shares), *others = sorted(across.items(), key=lambda item: -mean(item[1]))
        then = ", ".join(f"`{n}` {mean(s):.0%}" for n, s in others[:4])
        lines.append(
            f"- Over all of these tasks at their defaults, `{name}` gains the most on average: "
            f"{mean(shares):.0%} of LoRA's gain; then {then or 'none'}."
        )
    little = {t.name: _little(entries, t) for t, entries in found.items()}
    told = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in little.items() if keys)
    if told:
        lines.append(f"- Less than {LITTLE:.0%} of LoRA's gain in so few steps: {told}.")
    return lines


def _each(found: Found, line: Callable[[list[Entry], Task], str]) -> str:
    told = ((t.name, line(entries, t)) for t, entries in found.items())
    return "; ".join(f"{name}: {text}" for name, text in told if text)


def _lora_line(entries: list[Entry], task: Task) -> str:
    lora, frozen = find(entries, "lora"), find(entries, FROZEN)
    assert lora is not None
    assert frozen is not None
    start = number(frozen.measure(task.quality))
    return f"{task.quality} from {start} to {lora.text(task.quality)}"


def _told_apart(entries: list[Entry], task: Task) -> str:
    lora, own = find(entries, "lora"), [e for e in _methods(entries) if e.budget == OWN]
    assert lora is not None
    apart = [e for e in own if not alike(e, lora, task.quality)]
    better = [e for e in apart if goodness(e, task.quality) > goodness(lora, task.quality)]
    return f"{len(better)} better and {len(apart) - len(better)} worse of {len(own) - 1}"


def _full_line(entries: list[Entry], task: Task) -> str:
    full, lora = find(entries, FULL), find(entries, "lora")
    if full is None or lora is None:
        return ""
    return (
        f"{full.text(task.quality)} (LoRA {lora.text(task.quality)}), {task.forgetting} "
        f"{full.text(task.forgetting)} (LoRA {lora.text(task.forgetting)})"
    )


def _little(entries: list[Entry], task: Task) -> list[str]:
    own = [e for e in _methods(entries) if e.budget == OWN]
    return [f"`{e.method}`" for e in own if (share_of_gain(e, entries, task) or 0.0) < LITTLE]


def _methods(entries: Sequence[Entry]) -> list[Entry]:
    return [e for e in entries if e.method not in MARKS]


def _answers(found: Found) -> str:
    """A row for each wish, a column for each task."""
    good = f"and at least {ENOUGH:.0%} of LoRA's gain"
    rows = [["the best quality, at any budget", *(_best(e, t) for t, e in found.items())]]
    for rank in BUDGETS:
        budget = f"LoRA r{rank}"
        told = [
            _best([e for e in entries if e.budget == budget], t) for t, entries in found.items()
        ]
        rows.append([f"the best quality with no more numbers than {budget}", *told])
    wishes: dict[str, tuple[Callable[[Entry, Task], float], Callable[[Entry, Task], str]]] = {
        "few trained numbers": (lambda e, _: e.trainable, lambda e, _: f"{e.trainable:,}"),
        "a small file": (lambda e, _: e.mean("file_bytes") or float("inf"),
                         lambda e, _: f"{number((e.mean('file_bytes') or 0.0) / 1e3, 1)} kB"),
        "little forgotten": (lambda e, t: -goodness(e, t.forgetting),
                             lambda e, t: f"{t.forgetting} {e.text(t.forgetting)}"),
        "a quick step": (lambda e, _: e.mean("step_seconds") or float("inf"),
                         lambda e, _: f"{1e3 * (e.mean('step_seconds') or 0.0):.1f} ms"),
        "little memory in a step": (lambda e, _: e.mean("step_bytes") or float("inf"),
                                    lambda e, _: f"{(e.mean('step_bytes') or 0.0) / 1e6:.1f} MB"),
    }  # fmt: skip
    for wish, (cost, tell) in wishes.items():
        told = [_least(entries, t, cost, tell) for t, entries in found.items()]
        rows.append([f"{wish}, {good}", *told])
    return table(["what you want", *(t.name for t in found)], rows)


def _best(entries: Sequence[Entry], task: Task) -> str:
    ordered = best_first(_methods(entries), task.quality)
    if not ordered:
        return "-"
    best, *others = ordered
    close = {e.method for e in others if alike(e, best, task.quality)} - {best.method}
    note = f"; {len(close)} more within the deviations" if close else ""
    return f"{_name(best)}: {best.text(task.quality)}{note}"


def _least(
    entries: Sequence[Entry],
    task: Task,
    cost: Callable[[Entry, Task], float],
    tell: Callable[[Entry, Task], str],
) -> str:
    good = [
        e for e in _methods(entries) if (share_of_gain(e, entries, task) or 0.0) >= ENOUGH
    ]  # LoRA itself is among them
    lora = find(entries, "lora")
    found = min(
        good, key=lambda e: (cost(e, task), e is not lora, -goodness(e, task.quality), e.method)
    )
    beside = "" if lora is None or found is lora else f" (LoRA {tell(lora, task)})"
    return f"{_name(found)}: {tell(found, task)}{beside}"


def _name(entry: Entry) -> str:
    options = f" ({entry.parameters})" if entry.parameters else ""
    return f"`{entry.method}`{options}"


def _across(found: Found) -> dict[str, list[float]]:
    """Method -> its shares of LoRA's gain, of those measured on every task at their defaults."""
    shares: dict[str, list[float]] = {}
    for task, entries in found.items():
        for entry in _methods(entries):
            share = share_of_gain(entry, entries, task)
            if entry.budget == OWN and share is not None:
                shares.setdefault(entry.method, []).append(share)
    return {m: s for m, s in shares.items() if len(s) == len(found) and m != "lora"}


def _defaults(found: Found, shares: dict[str, list[float]]) -> str:
    across = sorted(shares.items(), key=lambda item: (-mean(item[1]), item[0]))
    header = ["method", "mean share of LoRA's gain", *(t.name for t in found)]
    rows = [[f"`{m}`", f"{mean(s):.0%}", *(f"{x:.0%}" for x in s)] for m, s in across]
    note = "Methods measured on every task, with their defaults; LoRA is 100% on each."
    return f"{note}\n\n{table(header, rows)}"
