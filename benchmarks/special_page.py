"""The page of the board of special models, from its results: no figure is typed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.board.summary import link, number, table
from benchmarks.equal.judging import measured
from benchmarks.special_tasks import TASKS
from benchmarks.special_tasks.task import Special
from benchmarks.special_tasks.whole import START
from corank.registry import METHODS

Rows = Sequence[Mapping[str, Any]]

INTRODUCTION = """\
# The board of special models

Methods made for convolutions, for mixtures of experts and for fine-tuned pairs, on models of these
kinds, beside methods for any weight; and methods that work on a whole model. Sizes are shares of
the bytes that the targeted weights store in bfloat16: scales, indices and codes count. Models are
compressed in bfloat16 and evaluated in float32, on data that they were neither trained nor
calibrated on; nothing is trained afterwards but where it is said.
A budget is met from below, so look at the bytes reached. `python -m benchmarks.special` trains the
models and measures, `python -m benchmarks.pages` writes this page.

One seed of training and of calibration, and small models: near ties mean little. Seconds are of the
processor, one thread, all of calibration included, on a machine shared with other work."""

ABOUT = {
    "digits": """\
Scikit-learn's digits, read by three convolutions and a linear layer over the means of their
channels; all four are targeted. {quality} is on images held out from training. `svd` as it is gives
every weight the same share, the small first and last layers too, so low-rank methods are also given
`allocate='greedy'`, which is `mixed_td`'s own rule.""",
    "experts": """\
A Mixtral of eight experts a layer, two for each token, trained from random weights on sources of
the standard library; the experts alone are targeted. {quality} is per token, on packages held out
from training. `mobe` leaves the down projections as they are, and within the budget; `submoe`
stores fewer experts.""",
    "delta": """\
The reference model, fine-tuned in full on prose, all but its tied embedding. Shares are of the
bytes of the linear layers, all of which changed; the norms are stored in full beside. {quality} is
per token, on documents held out from fine-tuning. `ere(bits=None)` is a plain low-rank delta.""",
    "smaller": """\
A LLaMA of half the reference model's width, so of a quarter of its bytes, trained on sources of the
standard library for 300 steps of 8 windows of 128 tokens: from evenly spaced numbers of the
reference model, which learned these sources for longer, or from random ones, at two rates.
{quality} is per token, on packages held out from the training of both. Trained in float32, stored
in bfloat16.""",
    "routed": """\
The reference model, every feed-forward network in four experts of which a token uses two: nothing
is smaller, less is multiplied. With rate=0 the router has learned nothing and always chooses the
same two. {quality} is per token, on packages held out from training; speed is tokens per second
over the original's, one batch of 8 x 128, in interleaved rounds. Split and, on calibration text,
healed in float32, stored in bfloat16.""",
}


@dataclass(frozen=True)
class Claim:
    """What is said of the first row beside the second, both labels, on a task at equal bytes."""

    task: str
    key: str
    says: str
    first: str
    second: str


CLAIMS = (
    Claim("digits", "mixed_td", "SVD or CP for each layer beats the SVD alone",
          "mixed_td", "svd(allocate='greedy')"),
    Claim("experts", "mobe", "beats low rank on experts", "mobe", "svd"),
    Claim("experts", "submoe", "beats low rank on experts", "submoe", "svd"),
    Claim("delta", "delta_come", "mixed precision beats a plain low-rank delta",
          "delta_come", "ere(bits=None)"),
    Claim("delta", "ere", "quantised factors beat a plain low-rank delta",
          "ere(bits=8)", "ere(bits=None)"),
    *(Claim("smaller", "weight_selection", f"a better start than a random one, rate {rate}",
            f"weight_selection(rate={rate})", f"{START}(rate={rate})") for rate in (0.001, 0.003)),
    *(Claim("routed", "factorllm", f"a router that learns beats the same experts always, {healed}",
            f"factorllm(rate=0.01, heal_steps={steps})", f"factorllm(rate=0.0, heal_steps={steps})")
      for steps, healed in ((0, "as they are"), (120, "healed"))),
)  # fmt: skip


def render(tables: Mapping[str, Any]) -> str:
    """The page; what was not measured is named and has no figures."""
    parts = [INTRODUCTION]
    if claims := [row for claim in CLAIMS if (row := _judge(claim, tables))]:
        header = ["paper", "claim", "model", "first side", "second side", "held at"]
        parts += ["## Claims of papers, tried small", table(header, claims)]
    for name, task in TASKS.items():
        if rows := tables.get(name):
            parts += _section(task, rows)
    if left := [f"{name}: {key}" for name, task in TASKS.items()
                for key in _left(task, tables.get(name, []))]:  # fmt: skip
        parts += ["## Not measured yet", "\n".join(f"- {line}" for line in left)]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(tables.get("environment", {}).items()))
    return "\n\n".join([*parts, "## Versions", versions]) + "\n"


def _section(task: type[Special], rows: Rows) -> list[str]:
    parts = [f"## {task.name}", ABOUT[task.name].format(quality=task.quality.capitalize())]
    for row in rows:
        if "measures" in row and "share" not in row:
            figures = ", ".join(f"{name} {number(v)}" for name, v in row["measures"].items())
            parts.append(f"The {row['key']} model: {figures}.")
    found = measured(rows)
    for share in sorted({row["share"] for row in found}, reverse=True):
        at = [row for row in found if row["share"] == share]
        parts += [f"### {_percent(share)}", _table(task, at)]
    if failed := [[row["key"], row["error"].replace("|", "/")] for row in rows if "error" in row]:
        parts += ["### Not possible", table(["row", "why"], failed)]
    return parts


def _table(task: type[Special], rows: Rows) -> str:
    more = sorted({name for row in rows for name in row["measures"]} - {task.quality})
    names, sign = [task.quality, *more], -1 if task.higher else 1
    ranked = sorted(rows, key=lambda row: sign * row["measures"][task.quality])
    return table(
        ["composition", "bytes reached", *names, "processor s"],
        [
            [row["label"], f"{row['reached']:.1%}", *(number(row["measures"][n]) for n in names),
             number(row["cpu_seconds"], 1)]
            for row in ranked
        ],
    )  # fmt: skip


def _judge(claim: Claim, tables: Mapping[str, Any]) -> list[str]:
    """A line of the table of claims; empty where a side is missing."""
    task, rows = TASKS[claim.task], measured(tables.get(claim.task, []))
    first, second = (
        {row["share"]: row["measures"][task.quality] for row in rows if row["label"] == label}
        for label in (claim.first, claim.second)
    )
    shares = sorted(first.keys() & second.keys(), reverse=True)
    if not shares:
        return []
    sign = 1 if task.higher else -1
    held = sum(sign * first[share] > sign * second[share] for share in shares)
    paper = METHODS[claim.key].paper
    texts = [
        f"{label}: " + "; ".join(f"{_percent(share)}: {number(side[share])}" for share in shares)
        for label, side in ((claim.first, first), (claim.second, second))
    ]
    return [link(paper.title, paper.arxiv), claim.says, f"{claim.task}, {task.quality}", *texts,
            f"{held} of {len(shares)} sizes"]  # fmt: skip


def _left(task: type[Special], rows: Rows) -> list[str]:
    there = {row["key"] for row in rows}
    return [row.key for row in task().rows() if row.key not in there]


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
