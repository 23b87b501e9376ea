"""The measured sections of a report as titled tables, shared by text, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .layers import slower_layers
from .units import show_bytes, show_count, show_fraction, show_value

#: Measures of which less is better; of all others more is.
LOWER_IS_BETTER = ("perplexity", "error")
#: The compressed model's name among the variants of the section "speed".
OWN = "corank"
FIDELITY, SPEED = "Fidelity", "Speed and size against quantisation"
TRAINING = "Training"


@dataclass(frozen=True)
class Section:
    """A title, a sentence on how it was measured, a table, and what to beware of."""

    title: str
    about: str
    header: list[str]
    rows: list[list[str]]
    warnings: list[str] = field(default_factory=list)


def list_sections(sections: Mapping[str, Any]) -> list[Section]:
    """The sections that were measured, of those known here, as tables."""
    found = []
    if sections.get("adapter"):
        found.append(_adapter(sections["adapter"]))
    if sections.get("steps"):
        found.append(_steps(sections["steps"]))
    if sections.get("tried"):
        found += _tried(sections["tried"])
    if sections.get("training"):
        found.append(_training(sections["training"]))
    if sections.get("fidelity"):
        found.append(_fidelity(sections["fidelity"]))
    if sections.get("speed"):
        found.append(_speed(sections["speed"]))
        closeness = _closeness(sections["speed"])
        found += [] if closeness is None else [closeness]
    if sections.get("layers"):
        found.append(_layers(sections["layers"]))
    if sections.get("ranks"):
        found.append(_ranks(sections["ranks"]))
    if sections.get("disk"):
        found.append(_disk(sections["disk"]))
    return found


def _adapter(counts: Mapping[str, Any]) -> Section:
    trained, stored, whole = counts["trainable"], counts["stored"], counts["model_numel_before"]
    return Section(
        "Adapter",
        "Numbers that train, and that are stored beside the weights.",
        ["", "numbers", "of the model"],
        [
            ["trainable", show_count(trained), show_fraction(trained / whole)],
            ["stored", show_count(stored), show_fraction(stored / whole)],
        ],
    )


def _steps(steps: Sequence[Mapping[str, Any]]) -> Section:
    table = [[row["step"], show_bytes(row["bytes"]), f"{row['seconds']:.1f}"] for row in steps]
    return Section(
        "Steps",
        "In the order they were done; bytes are of the whole model after the step.",
        ["step", "bytes", "seconds"],
        table,
    )


def _tried(tried: Mapping[str, Any]) -> list[Section]:
    whole = [
        [row["steps"], "-" if row["loss"] is None else show_value(row["loss"]),
         "-" if row["bytes"] is None else show_bytes(row["bytes"]), row["failed"] or ""]
        for row in tried["whole"]
    ]  # fmt: skip
    profile = [
        [row["steps"], f"{row['keep']:.3g}", "-" if row["failed"] else
         show_value(row["distance"]), row["failed"] or ""]
        for row in sorted(tried["profile"], key=lambda r: (r["failed"] or "", r["keep"]))
    ]  # fmt: skip
    return [
        Section(
            "Tried on the whole model",
            "Distance of the outputs to the original's on the tuning data.",
            ["composition", "distance", "bytes", "failed"],
            whole,
        ),
        Section(
            "Tried on one block",
            "The same on a few tuning batches, with only one block rewritten.",
            ["composition", "keep", "distance", "failed"],
            profile,
        ),
    ]


def _training(run: Mapping[str, Any]) -> Section:
    rows = [[str(step), f"{loss:.4f}", _perplexity(loss)] for step, loss in run["tuning"]]
    early = " It stopped early and went back to its best." if run["stopped_early"] else ""
    return Section(
        TRAINING,
        f"{run['steps']} steps in {run['seconds']:.0f} s: perplexity on the tuning rows "
        f"{_perplexity(run['before'])} before, {_perplexity(run['after'])} after.{early}",
        ["step", "loss on the tuning rows", "perplexity"],
        rows,
    )


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700.0)):.4g}"


def improves(measure: str, value: float, over: float) -> bool:
    """Whether `value` of that measure is better than `over`."""
    return value < over if measure.endswith(LOWER_IS_BETTER) else value > over


def quantisation_wins(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A plain sentence for each quantised variant of no more bytes that is faster or closer.

    rows: of the section "speed"; the compressed model's own is the variant "corank".
    """
    own = next((row for row in rows if row["variant"] == OWN), None)
    if own is None:
        return []
    warnings = []
    for row in rows:
        if row["variant"] in (OWN, "dense") or row["bytes"] > own["bytes"]:
            continue
        better = _advantages(row, own)
        if better:
            warnings.append(
                f"quantisation wins here: {row['variant']} takes {show_bytes(row['bytes'])}, not "
                f"more than the {show_bytes(own['bytes'])} of this model, and is better in "
                + " and ".join(better)
            )
    return warnings


def _advantages(row: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    better = []
    if row["tokens_per_second"] > own["tokens_per_second"]:
        times = row["tokens_per_second"] / own["tokens_per_second"]
        better.append(f"speed ({times:.2f} times the tokens per second)")
    theirs, mine = row.get("fidelity") or {}, own.get("fidelity") or {}
    shared = [name for name in theirs if name in mine]
    won = [name for name in shared if improves(name, theirs[name], over=mine[name])]
    if won:
        share = f"{len(won)} of {len(shared)} measures of fidelity"
        example = f"{won[0]} ({show_value(theirs[won[0]])} against {show_value(mine[won[0]])})"
        better.append(f"{share}, as in {example}")
    return better


def _fidelity(rows: Sequence[Mapping[str, Any]]) -> Section:
    table = [
        [r["domain"], r["measure"], show_value(r["before"]), show_value(r["after"]), r["unit"]]
        for r in rows
    ]
    return Section(
        FIDELITY,
        "Measured on text that the compression did not see. 'before' is the original model.",
        ["domain", "measure", "before", "after", "unit"],
        table,
    )


def _speed(rows: Sequence[Mapping[str, Any]]) -> Section:
    table = [
        [row["variant"], show_bytes(row["bytes"]), show_count(row["tokens_per_second"]),
         f"{row['relative']:.2f}x"]
        for row in rows
    ]  # fmt: skip
    return Section(
        SPEED,
        "Median of interleaved rounds on this machine; bytes are of the whole model in memory.",
        ["variant", "bytes", "tokens/s", "to dense"],
        table,
        quantisation_wins(rows),
    )


def _layers(rows: Sequence[Mapping[str, Any]]) -> Section:
    counts = list(rows[0]["speed"])
    table = [
        [row["operator"], " x ".join(map(str, row["shape"])), str(row["sites"]),
         *(f"{row['speed'][count]:.2f}x" for count in counts)]
        for row in rows
    ]  # fmt: skip
    return Section(
        "Layers against dense ones",
        "One of each kind and shape on random inputs, interleaved rounds, speed over the dense.",
        ["operator", "shape", "sites", *(f"{count} rows" for count in counts)],
        table,
        slower_layers(rows),
    )


def _closeness(rows: Sequence[Mapping[str, Any]]) -> Section | None:
    """Measure by measure, what each variant reaches at its bytes."""
    shown = [row for row in rows if row.get("fidelity")]
    measures = list(dict.fromkeys(name for row in shown for name in row["fidelity"]))
    if len(shown) < 2:
        return None
    table = [
        [name, *(show_value(row["fidelity"].get(name, "-")) for row in shown)] for name in measures
    ]
    header = ["measure", *(f"{r['variant']}, {show_bytes(r['bytes'])}" for r in shown)]
    about = "The same measurements for each variant; compare those of equal bytes."
    return Section("Fidelity against quantisation", about, header, table)


def _ranks(ranks: Mapping[str, Mapping[str, float]]) -> Section:
    measures = list(dict.fromkeys(name for row in ranks.values() for name in row))
    table = [
        [site, *(show_value(row[name]) if name in row else "-" for name in measures)]
        for site, row in ranks.items()
    ]
    return Section(
        "Ranks",
        "stable: ||W||_F^2 / ||W||_2^2; effective: exp of the entropy of the singular values; "
        "numerical: above rounding; 90, 99: what holds so many percent of the energy.",
        ["site", *(name.removesuffix("_rank").removeprefix("rank_") for name in measures)],
        table,
    )


def _disk(disk: Mapping[str, Any]) -> Section:
    before, after = disk["before"], disk["after"]
    row = [show_bytes(before), show_bytes(after), show_fraction(after / before if before else None)]
    return Section(
        "On disk",
        "All files of the model's folder, tokenizer included.",
        ["before", "after", "fraction"],
        [row],
    )
