"""Making one row: a fresh model in bfloat16, compressed to a share of its bytes, and measured."""

from __future__ import annotations

import copy
import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import corank
from benchmarks.board.tasks import Task
from benchmarks.equal.rows import AMONG, AUTO, TRAINED, Row
from corank.engine.summary import model_sizes
from corank.registry import METHODS
from corank.report.speed import measure_speed
from corank.verbs.steps import read_steps


def measure(task: Task, row: Row, folder: Path) -> dict[str, Any]:
    """The row's figures. Statistics that rows share are kept in `folder`.

    Raises ValueError where the model that came out holds more bytes than the row is for.
    """
    model = load(task)
    held = model_sizes(model)["bytes"]
    data, started = task.calibration(row.seed), time.process_time()
    common = {"keep": row.share, "targets": task.targets, "seed": row.seed, "data": data}
    if row.steps == (AUTO,):
        report = corank.compress(model, AUTO, tuning=task.tuning(), among=AMONG, **common)
    elif row.steps[0] in tuple(TRAINED):
        key = row.steps[0]
        verb = corank.quantize if METHODS[key].area == "quantize" else corank.compress
        report = verb(model, key, heal_steps=row.healed, **TRAINED[key][0], **common)
    else:
        file = folder / f"{_needs(row)}-{task.name.replace(' ', '-')}-{row.seed}.safetensors"
        common |= {"statistics": file, "heal_steps": row.healed}
        report = corank.compress(model, list(row.steps), **common)
    spent = time.process_time() - started
    before = report.totals["bytes_before"]
    if (bytes_ := model_sizes(model)["bytes"]) > held - before + row.share * before:
        raise ValueError(f"{bytes_:,} bytes are more than {row.share:.0%} allows")
    found = {
        "key": row.key, "label": row.label, "share": row.share, "seed": row.seed,
        "method": report.method, "bytes": report.totals["bytes_after"],
        "dense_bytes": before, "reached": report.totals["bytes_after"] / before,
        "cpu_seconds": spent, "measures": task.evaluate(in_full(model)),
        "speed": speed(task, model),
    }  # fmt: skip
    if row.healed:
        batches = len(data)
        found["healing"] = {
            "tokens": row.healed * sum(b["input_ids"].numel() for b in data) // batches,
            "seconds": report.seconds["healing"], "losses": report.sections["healing"]["losses"],
        }  # fmt: skip
    if "tried" in report.sections:
        found["tried"] = report.sections["tried"]["whole"]
        found["profiled"] = len(report.sections["tried"]["profile"])
    return found


def load(task: Task) -> nn.Module:
    """The task's model in bfloat16."""
    return task.load().to(torch.bfloat16)


def in_full(model: nn.Module) -> nn.Module:
    """The same values in float32, in which all models are evaluated."""
    return copy.deepcopy(model).float()


def speed(task: Task, model: nn.Module) -> float:
    """Tokens per second over the dense model's, both in bfloat16, in interleaved rounds."""
    batch = max(task.calibration(0), key=lambda b: b["input_ids"].numel())
    rows = measure_speed({"dense": load(task), "row": model}, batch, repeats=3)
    return float(rows[1]["relative"])


def _needs(row: Row) -> str:
    """A name for the statistics that the first step reads."""
    needs = sorted(read_steps(row.steps)[0].recipe.needs)
    return hashlib.sha256(" ".join(needs).encode()).hexdigest()[:12]
