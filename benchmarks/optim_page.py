"""The page on what optimisers and sketched layers cost, from their results."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from benchmarks.board.summary import number, table

INTRODUCTION = """\
# What the optimisers cost

Ratios within one run, processor time of one thread on a machine shared with other work.
`python -m benchmarks.optim` and `python -m benchmarks.activation` measure, `python -m
benchmarks.pages` writes this page. Asked: an amortised step at most 1.1 times that of torch's fused
AdamW, no step longer than 3 times the median, a refresh at least 5 times cheaper than the SVD, and
a quarter fewer bytes kept for backward."""


def render_optimizers(
    found: dict[str, Any], kept: dict[str, Any], structured: dict[str, Any]
) -> str:
    """The page; `kept` and `structured` are the results of `benchmarks.activation` and
    `benchmarks.structured`, empty if there are none."""
    parts = [INTRODUCTION]
    for row in found["optim"]:
        if "refresh" in row["key"]:
            parts.append(f"## A {row['key']}\n\n{_refresh(row)}")
        elif "over_adamw" in row:
            parts.append(f"## The {row['key']}\n\n{_alone(row)}")
        else:
            parts.append(f"## Whole {row['key']}\n\n{_training(row)}")
    if kept:
        parts.append(f"## Bytes kept for backward\n\n{_activations(kept)}")
    if section := render_structured(structured):
        parts.append(section)
    versions = ", ".join(f"{k} {v}" for k, v in sorted(found["environment"].items()))
    return "\n\n".join([*parts, f"Measured with {versions}."]) + "\n"


def _training(row: dict[str, Any]) -> str:
    columns = ("amortised_over_adamw", "longest_over_median", "state_bytes", "last_losses")
    head = [
        "optimiser",
        "step over AdamW's",
        "longest over median",
        "bytes of state",
        "last losses",
    ]
    rows = [[name, *(number(row[c][name]) for c in columns)] for name in row["state_bytes"]]
    text = f"The reference model, {row['steps']} steps; the first step's refresh is spread over T."
    return f"{text}\n\n{table(head, rows)}"


def _refresh(row: dict[str, Any]) -> str:
    rows = [
        [told, number(row["svd_over"][name]), f"{row['energy'][name]:.3f}"]
        for name, told in (("first", "the first basis"), ("later", "from the last basis"))
    ]
    text = f"The SVD's basis holds {row['energy']['svd']:.3f} of the gradient's energy."
    return f"{text}\n\n{table(['by subspace iteration', 'times cheaper', 'energy held'], rows)}"


def _alone(row: dict[str, Any]) -> str:
    ordered = sorted(row["over_adamw"].items(), key=lambda item: item[1])
    rows = [[name, number(v), number(row["longest_over_median"][name])] for name, v in ordered]
    head = ["optimiser", "step over AdamW's", "longest over median"]
    text = "Without forward and backward."
    return f"{text}\n\n{table(head, rows)}"


def _activations(kept: dict[str, Any]) -> str:
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in kept["rows"]:
        runs.setdefault((row["model"], row["kind"]), []).append(row)
    rows = []
    for (model, kind), found in runs.items():
        spread = _deviation([row["loss"] for row in runs[model, "plain"]])
        bytes_, blocks, loss = (
            mean(row[f"{of}_ratio"] for row in found)
            for of in ("kept_bytes", "kept_bytes_of_blocks", "loss")
        )
        if kind != "plain":
            told = f"{loss:.3f} (plain: ± {spread:.3f})"
            met = "yes" if bytes_ <= 0.75 and loss - 1 <= spread else "no"
            rows.append([model, kind, f"{bytes_:.3f}", f"{blocks:.3f}", told, met])
    steps, seeds = kept["arguments"]["steps"], kept["arguments"]["seeds"]
    text = (
        f"Over plain backward, means over {seeds} seeds; losses of the last third of {steps} "
        "steps, beside the plain losses' deviation over seeds. Asked: at most 0.75 of the bytes "
        "at a loss within the noise. Both methods compress what linear layers read, which is the "
        "smaller part of what a LLaMA keeps: its gates, norms and attention keep the rest."
    )
    head = ["model", "method", "whole model", "blocks", "loss", "met"]
    return f"{text}\n\n{table(head, rows)}"


def _deviation(values: list[float]) -> float:
    """The standard deviation over the mean."""
    return stdev(values) / mean(values)


def render_structured(found: dict[str, Any]) -> str:
    """The section on a step of structured weights; "" if nothing was measured."""
    rows = [
        [f"{row['key']}, {row['threads']} threads", name, number(row["milliseconds"][name], 1),
         number(ratio, 2), number(row["parameters_over_dense"][name], 2)]
        for row in found.get("steps", []) for name, ratio in row["over_dense"].items()
    ]  # fmt: skip
    if not rows:
        return ""
    head = ["block", "weights", "milliseconds", "over dense", "numbers over dense"]
    text = (
        "## A step of structured weights\n\nWall clock of forward, backward and fused AdamW over a "
        "block of a LLaMA and 512 tokens, at half of the linear layers' numbers; `python -m "
        "benchmarks.structured`. Asked: faster than dense at width 1024 and above."
    )
    return f"{text}\n\n{table(head, rows)}"
