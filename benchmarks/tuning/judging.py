"""What adapters have to cost at most beside PEFT's, and whether they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.board.judging import MARKS
from benchmarks.board.summary import number

START_RATIO, LOAD_RATIO, INFERENCE_RATIO, WRAPPING = 0.8, 1.0, 0.5, 3.0
#: Time above the frozen base's as a share of PEFT's, and for HRA the saved bytes too.
ABOVE_BASE = {"DoRA": 0.5, "VeRA": 0.5, "LoHa": 0.5, "FourierFT": 0.5, "RandLoRA": 0.5, "HRA": 0.1}
#: What the keys of the rows begin with that have a target.
PROMISED = (
    "start PiSSA 4096", "start PiSSA r16, every linear layer", "step LoRA",
    *(f"step {method}" for method in ABOVE_BASE), "inference", "wrapping 1000",
)  # fmt: skip


def judge_adapters(tables: dict[str, Any]) -> list[list[str]]:
    """Rows [what, to reach, reached, met or not met] from `benchmarks.adapters`'s results."""
    rows = tables.get("adapters", [])
    judged = [
        [what, least, reached, MARKS[met]]
        for row in rows
        for what, least, reached, met in _judge(row)
    ]
    missing = [p for p in PROMISED if not any(row["key"].startswith(p) for row in rows)]
    return judged + [[what, "-", "-", "not measured"] for what in missing]


def _judge(row: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    key = row["key"]
    if "residual_ratio" in row:
        yield (
            f"{key}: time over PEFT's", f"at most {START_RATIO}", number(row["ratio"], 2),
            row["ratio"] <= START_RATIO,
        )  # fmt: skip
        yield (
            f"{key}: residual over PEFT's", "at most 1", number(row["residual_ratio"], 4),
            row["residual_ratio"] <= 1,
        )  # fmt: skip
    elif "first load" in row.get("seconds", {}):
        taken = row["seconds"]
        reached = (
            f"{row['ratio']:.2f} (adapting {taken['first adapt']:.2f} s, first load in the process "
            f"{taken['first load']:.2f} s, a second load {taken['load again']:.2f} s)"
        )
        what, met = f"{key}: time over that of loading it", row["ratio"] <= LOAD_RATIO
        yield what, f"at most {LOAD_RATIO:g}", reached, met
    elif "speedup" in row:
        met = row["speedup"] >= WRAPPING
        what = f"{key}: speed over PEFT's"
        yield what, f"at least {WRAPPING:g}", number(row["speedup"], 2), met
    elif "microseconds_above_base_per_layer" in row:
        met = row["ratio"] <= INFERENCE_RATIO
        what = f"{key}: time above the bare layer's over PEFT's"
        yield what, f"at most {INFERENCE_RATIO}", number(row["ratio"], 2), met
    elif "time_above_base" in row:
        yield from _judge_step(row)


def _judge_step(row: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    key, method = row["key"], row["key"].split()[1]
    saved = ("saved bytes above the frozen base's over PEFT's", row["saved_above_base"])
    if method == "LoRA":
        judged = [("time over PEFT's", row["time_ratio"], 1.0), (*saved, 1.0)]
    elif method in ABOVE_BASE:
        most = ABOVE_BASE[method]
        judged = [("time above the frozen base's over PEFT's", row["time_above_base"], most)]
        judged += [(*saved, most)] if method == "HRA" else []
    else:
        judged = []
    for what, value, most in judged:
        yield f"{key}: {what}", f"at most {most:g}", number(value, 2), value <= most
