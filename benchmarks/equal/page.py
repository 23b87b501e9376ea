"""The page of the board at equal bytes, from its results: no figure is typed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.board.plots import COLOURS, draw
from benchmarks.board.summary import number, table
from benchmarks.equal.any_size import claim_row, render_sizes
from benchmarks.equal.claims import render_claims
from benchmarks.equal.judging import best, is_single, judge, measured, original
from benchmarks.equal.memory import render_memory
from benchmarks.equal.more import coverage, render_healed, render_seeds
from benchmarks.equal.rows import AMONG, AUTO, SHARES, list_rows
from benchmarks.equal.tempered import render_tempered
from corank.verbs.candidates import candidates
from corank.verbs.steps import read_steps

MODELS = {"MiniLM": "mean cosine", "reference LM": "perplexity"}
#: Lines of the plot beside the best single method's.
PLOTTED = ("gptq", "round_to_nearest", "svd", "svd_llm", "kfac_svd", "corank", "modegpt", "qera")
INTRODUCTION = """\
# The board at equal bytes

Methods of the areas compress and quantize that a budget can size, structures whose factors are
stored in codes, and `method="auto"`, at {shares} of the bytes that the
targeted weights store in bfloat16, as far as they are tried, which each model says: scales,
indices, masks and new biases count. What trains by itself stands under "After healing"; what is for
other models or for deltas, on [the board of special models](board-special.md). Models, texts and
measures are those of [the other board](board-compress.md); weights are compressed in bfloat16 and
evaluated in float32. Where bits stand in brackets, each site has its own. Nothing is trained but
where healing is said. `auto` chooses on tuning text, which is neither calibrated on nor evaluated,
among
{among}.
`python -m benchmarks.equal_bytes` measures, `python -m benchmarks.pages` writes this page.

One calibration seed but where several are said. Seconds are of the processor, one thread, all of
calibration included, on a machine shared with other work; rows of the same statistics
share a pass, timed with the first. Speed is tokens per second over the dense bfloat16 model's, one
batch, interleaved rounds."""


WHY = """\
`auto` takes what is nearest to the original's outputs on tuning text, which for the language model
is of the first domain. It does not look for what is
[better than the original itself](#better-than-the-original), as some methods are there, on other
calibration text too."""

CLAIMS = """\
What a paper says of one method beside another, at equal bytes on these two models. A claim holds at
a size where the first side is better in and out of domain; one calibration seed, so near ties mean
little, and small models say little of the scale that the papers write of."""


def render(
    tables: Mapping[str, Any],
    decoding: Mapping[str, Any] | None = None,
    peaks: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, str]]:
    """The page, and its plots by file name."""
    among = ", ".join(" + ".join(s.label for s in read_steps(c)) for c in candidates(AMONG))
    shares = ", ".join(f"{share:.0%}" for share in sorted(SHARES, reverse=True))
    parts, plots = [INTRODUCTION.format(shares=shares, among=among)], {}
    if judged := judge(tables, MODELS):
        parts += ["## Targets", table(["what", "to reach", "reached", ""], judged), WHY]
    if claims := render_claims(tables, MODELS, claim_row(sizes or {})):
        parts += ["## Claims of papers, tried small", CLAIMS, claims]
    for model, measure in MODELS.items():
        rows = measured(tables.get(model, []))
        if not rows:
            continue
        slug = model.lower().replace(" ", "-")
        plots[f"{slug}-bytes.svg"] = _plot(rows, measure, original(tables[model]))
        parts += [f"## {model}", f"![{measure} over bytes](plots/{slug}-bytes.svg)"]
        if "perplexity" in measure:
            dense = original(tables[model])
            parts.append(
                f"The original: {', '.join(f'{k} {number(v, 2)}' for k, v in dense.items())}."
            )
        parts.append("Rows tried, " + coverage(tables[model], list_rows()))
        for share in sorted({row["share"] for row in rows}, reverse=True):
            at = [row for row in rows if row["share"] == share]
            parts += [f"### {share:.0%}", _table(at, measure)]
        parts += render_healed(tables, model, measure) + render_seeds(tables, model, measure)
        parts += render_tempered(tables, model, measure)
        parts += _failed(tables[model])
    parts += render_sizes(sizes or {})
    parts += render_speed((decoding or {}).get("decode", []), (decoding or {}).get("notes", []))
    parts += render_memory(peaks or {})
    versions = ", ".join(f"{k} {v}" for k, v in sorted(tables.get("environment", {}).items()))
    return "\n\n".join([*parts, "## Versions", versions]) + "\n", plots


SPEED = """\
A random LLaMA of {numel:.1f} M parameters and width 1024, bfloat16, on the CPU (`python -m
benchmarks.decode`). Speeds are over the dense model's: prefill of {prompt} tokens, and {new} tokens
decoded with a cache, medians of interleaved rounds. Where a figure is below 1 the form is slower
than the dense layer on this machine: it saves bytes, not time."""


def render_speed(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> list[str]:
    """The section on speed; empty where nothing was measured."""
    dense = next((row for row in rows if row["key"] == "dense"), None)
    if dense is None:
        return []
    header = ["form", "bytes", *(
        f"{part}, batch {batch}" for part in ("prefill", "decode") for batch in (1, 16)
    )]  # fmt: skip
    shown = [
        [row["key"], f"{row['bytes'] / dense['bytes']:.0%}", *(
            number(row["speeds"][str(batch)][f"{part} over dense"], 2)
            for part in ("prefill", "decode") for batch in (1, 16)
        )]
        for row in sorted(rows, key=lambda row: -row["bytes"])
    ]  # fmt: skip
    about = SPEED.format(numel=dense["numel"] / 1e6, prompt=dense["prompt"], new=dense["new"])
    threads = f"{dense['threads']} thread(s), {dense['rounds']} rounds."
    return ["## Speed", " ".join([about, threads]), table(header, shown), *notes]


def _table(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    names = [f"{domain}: {measure}" for domain in ("in", "out")]
    sign = 1 if measure == "perplexity" else -1
    ranked = sorted(rows, key=lambda row: sign * row["measures"][names[0]])
    return table(
        ["composition", "", *names, "bytes reached", "processor s", "speed"],
        [
            [row["label"], row["method"].removeprefix("auto: ") if row["label"] == AUTO else "",
             *(number(row["measures"][name]) for name in names), f"{row['reached']:.1%}",
             number(row["cpu_seconds"], 0), number(row["speed"], 2)]
            for row in ranked
        ],
    )  # fmt: skip


def _failed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [[row["key"], row["error"].replace("|", "/")] for row in rows if "error" in row]
    return ["### Not possible", table(["row", "why"], found)] if found else []


def _plot(rows: Sequence[Mapping[str, Any]], measure: str, dense: Mapping[str, float]) -> str:
    """A measure over the bytes reached: the best single method, auto, and the methods plotted."""

    def fill(all_axes: Sequence[Any]) -> None:
        for axes, domain in zip(all_axes, ("in", "out"), strict=True):
            name = f"{domain}: {measure}"
            lines: dict[str, list[tuple[float, float]]] = {}
            for key in (AUTO, *PLOTTED):
                own = [r for r in rows if is_single(r) or key == AUTO]
                own = [r for r in own if r["label"].partition("(")[0] == key]
                lines[key] = [(r["reached"], r["measures"][name]) for r in own]
            singles = [r for r in rows if is_single(r)]
            tops = [
                best([r for r in singles if r["share"] == share], name)
                for share in {r["share"] for r in singles}
            ]
            lines["best single"] = [(r["reached"], r["measures"][name]) for r in tops if r]
            for i, (label, points) in enumerate(lines.items()):
                if points:
                    x, y = zip(*sorted(points), strict=True)
                    style = {"marker": "osD^vP*Xh"[i % 9], "color": COLOURS[i % len(COLOURS)]}
                    axes.plot(x, y, label=label, linewidth=1.3, markersize=4, **style)
            if name in dense:
                axes.axhline(dense[name], color="#aaaaaa", linewidth=0.8, linestyle="--")
            axes.set_xlabel("share of the bfloat16 bytes stored")
            axes.set_title(f"{measure}, {domain} of domain" if domain == "out" else
                           f"{measure}, in domain", fontsize=10)  # fmt: skip
            if measure == "perplexity":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
        all_axes[-1].legend(loc="best", fontsize=7)

    return draw(fill)
