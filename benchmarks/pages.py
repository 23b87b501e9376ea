"""Writes the boards' pages and plots in `docs` from `benchmarks/results`: no figure is typed here.

python -m benchmarks.pages [--results FOLDER] [--docs FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.board.judging import judge_board, judge_factorise, judge_imports, judge_linear
from benchmarks.board.plots import plot_costs, plot_keeps
from benchmarks.board.rows import EVERY_ALLOCATOR, LITERAL
from benchmarks.board.summary import Entry, list_entries, number, table
from benchmarks.claiming.page import render_claims
from benchmarks.equal.page import render as render_equal
from benchmarks.memory_page import render_memory
from benchmarks.optim_page import render_optimizers
from benchmarks.special_page import render as render_special
from benchmarks.training.claims import render_claims as render_training_claims
from benchmarks.training.page import render_training
from corank.registry import METHODS

RESULTS = Path(__file__).parent / "results"
MODELS = {"MiniLM": "mean cosine", "reference LM": "perplexity"}
PLOTTED = ("svd", "asvd", LITERAL, "svd_llm", "kfac_svd", "corank")
INTRODUCTION = """\
# The board: compressing whole models

Every compression method of corank, and SVD-LLM's recipe done literally (Cholesky whitening, full
SVD, explicit inverse), at three budgets, on two models. `python -m benchmarks.compress` measures,
`python -m benchmarks.pages` writes this page from `benchmarks/results`. Nothing was tuned on the
evaluation text.

- **MiniLM**: all-MiniLM-L6-v2, the linear layers of its encoder. Calibration: docstring paragraphs
  of the standard library; in domain: those of other packages; out of domain: prose, equally many
  sentences of Python's help topics and of scikit-learn's data set descriptions. Mean cosine is
  between mean-pooled, normalised embeddings before and after; neighbour overlap is how many of
  each text's 10 nearest stay.
- **reference LM**: the small LLaMA of `benchmarks/reference`, all linear layers but its tied head.
  Calibration: files that it was trained on; in domain: packages held out from training; out of
  domain: prose. Perplexity is per token.

Seconds are of the processor, one thread, on a machine shared with other work: calibration is the
passes over the data that a method's statistics take (shared by methods, timed once), factorisation
is all else until the model is rewritten, and holds the cascade's runs of the model. Healing makes
as many steps as fit into {healing} processor seconds, which is two minutes of two cores, the
original's passes included; the tables say what it took."""
SEED_NOTE = "± is half the range over calibration seeds; no ± means one seed."


def render(results: Path) -> tuple[str, dict[str, str]]:
    """The page, and its plots by file name."""
    from benchmarks.board.measure import HEALING_SECONDS

    board = _read(results / "compress.json")
    parts = [
        INTRODUCTION.format(healing=f"{HEALING_SECONDS:.0f}"),
        _sizes(board),
        _unmeasured(board),
        _targets(results),
    ]
    plots: dict[str, str] = {}
    for model, measure in MODELS.items():
        if entries := list_entries(board.get(model, [])):
            parts.append(_model(model, measure, entries, board, plots))
    parts += [_speeds(board, results), _tries(board, results), _environment(board)]
    return "\n\n".join(part for part in parts if part) + "\n", plots


def render_adapters(results: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """The pages on adapters with their plots, by file name; none where nothing was measured."""
    from benchmarks.tuning.guide import render_guide
    from benchmarks.tuning.page import render_board

    board, speeds = _read(results / "adapt.json"), _read(results / "adapters.json")
    if not board:
        return {}
    pages = {"board-adapt.md": render_board(board, speeds)}
    if guide := render_guide(board):
        pages["which-adapter.md"] = guide, {}
    return pages


def _targets(results: Path) -> str:
    rows = judge_board(_read(results / "compress.json"))
    rows += judge_factorise(_read(results / "factorise.json"))
    rows += judge_linear(_read(results / "linear.json"))
    rows += judge_imports(_read(results / "imports.json"))
    return "## Targets\n\n" + table(["what", "to reach", "reached", ""], rows)


def _model(
    model: str, measure: str, entries: list[Entry], board: dict[str, Any], plots: dict[str, str]
) -> str:
    dense = next((r["measures"] for r in board[model] if r["key"] == "dense"), {})
    slug = model.lower().replace(" ", "-")
    plots[f"{slug}-keeps.svg"] = plot_keeps(_lines(entries), measure, dense)
    lowest = min(e.keep for e in entries if e.keep is not None)
    costs = {
        e.name: (sum(map(e.seconds, ("calibration", "factorisation", "healing"))), value)
        for e in _own(entries, lowest)
        if (value := e.measure(f"in: {measure}")) is not None
    }
    plots[f"{slug}-costs.svg"] = plot_costs(costs, f"{measure}, in domain")
    line = _dense_line(dense)
    parts = [
        f"## {model}", *([line] if line else []),
        f"![{measure} over the fraction kept](plots/{slug}-keeps.svg)",
        f"![{measure} over seconds at keep {lowest}](plots/{slug}-costs.svg)", SEED_NOTE,
    ]  # fmt: skip
    names = _names(entries, measure)
    for keep in sorted({e.keep for e in entries}, key=lambda k: k or 2.0):
        found = [e for e in entries if e.keep == keep]
        shown = [e for e in found if not _is_sweep(e)]
        title = "At a rank of their own" if keep is None else f"Keep {keep}"
        parts += [f"### {title}", _entries_table(shown, names, measure)]
        sweep = [e for e in found if e.method in EVERY_ALLOCATOR and not e.healed]
        if any(map(_is_sweep, found)):
            parts += ["Allocators:", _entries_table(sweep, names[:0], measure)]
    if failed := [r for r in board[model] if "error" in r]:
        rows = [[r["key"], r["error"].replace("|", "/")] for r in failed]
        parts += ["### Not possible", table(["row", "why"], rows)]
    return "\n\n".join(parts)


def _names(entries: list[Entry], measure: str) -> list[str]:
    """The measures to show: all in and out of domain, and of the parts of a domain the main one."""
    found = sorted({n for e in entries for r in e.rows for n in r["measures"]})
    whole = [n for n in found if n.startswith(("in: ", "out: "))]
    order = sorted(whole, key=lambda n: (n.split(": ")[1] != measure, n.split(": ")[1], n))
    return order + [n for n in found if n not in whole and n.endswith(measure)]


def _entries_table(entries: list[Entry], names: list[str], measure: str) -> str:
    names = names or [f"in: {measure}", f"out: {measure}"]
    header = ["method", "allocator", "kept", *names, "calibration s", "factorisation s",
              "healing s", "model MB"]  # fmt: skip
    better = -1 if measure == "perplexity" else 1
    ranked = sorted(entries, key=lambda e: -better * (e.measure(f"in: {measure}") or 0.0))
    digits = 2 if measure == "perplexity" else 3
    return table(header, [
        [e.name, e.allocate, number(e.mean("reached")), *(_spread(e, n, digits) for n in names),
         *(number(e.seconds(p), 1) for p in ("calibration", "factorisation", "healing")),
         number(e.mean("model_bytes") / 1e6, 1)]
        for e in ranked
    ])  # fmt: skip


def _spread(entry: Entry, name: str, digits: int) -> str:
    values = entry.values(name)
    text = number(entry.measure(name), digits)
    half = (max(values) - min(values)) / 2 if len(values) > 1 and len(entry.rows) > 1 else None
    return text if half is None else f"{text} ± {number(half, digits)}"


def _is_sweep(entry: Entry) -> bool:
    return entry.method in EVERY_ALLOCATOR and entry.allocate not in ("uniform", "greedy_floor")


def _own(entries: list[Entry], keep: float) -> list[Entry]:
    """One entry per method: with the allocator that it is plotted with."""
    return [e for e in entries if e.keep == keep and e.allocate == _plotted(e.method)]


def _plotted(method: str) -> str:
    """A method's own allocator; KFAC-SVD's is left open by its paper, so the better one."""
    chosen = {LITERAL: "uniform", "kfac_svd": "greedy_floor"}
    return chosen.get(method) or str(METHODS[method].recipe({}).allocate)


def _lines(entries: list[Entry]) -> dict[str, dict[float, dict[str, float]]]:
    lines: dict[str, dict[float, dict[str, float]]] = {}
    for keep in sorted({e.keep for e in entries if e.keep is not None}):
        for e in _own(entries, keep):
            if e.method in PLOTTED:
                names = {n for row in e.rows for n in row["measures"]}
                values = {n: v for n in names if (v := e.measure(n)) is not None}
                lines.setdefault(e.name, {})[keep] = values
    return dict(sorted(lines.items()))


def _dense_line(dense: dict[str, float]) -> str:
    shown = [f"{name} {number(v, 2)}" for name, v in sorted(dense.items()) if "perplexity" in name]
    return f"The original: {', '.join(shown)}." if shown else ""


def _sizes(board: dict[str, Any]) -> str:
    rows = [
        [model, str(s["calibration"]), str(s["healing"]), str(s["evaluation"])]
        for model in MODELS
        if (s := board.get(f"{model} sizes"))
    ]
    header = ["model", "calibration texts", "healing texts", "evaluation texts per domain"]
    note = "Texts are paragraphs and sentences for MiniLM, windows of 256 tokens for the reference."
    return f"{table(header, rows)}\n\n{note}" if rows else ""


def _speeds(board: dict[str, Any], results: Path) -> str:
    parts = []
    rows = [
        [model, str(r["keep"]), " x ".join(map(str, r["batch"])), number(r["ratio"], 2)]
        for model in MODELS
        for r in board.get(f"{model} speed", [])
    ]
    if rows:
        head = ["model", "keep", "batch x tokens", "speed over dense"]
        parts += ["Uniform ranks, whole forward passes, in interleaved rounds:", table(head, rows)]
    layers = _read(results / "linear.json").get("linear", [])
    if layers:
        head = ["tokens", "speed-up (quartiles)", "share of the ideal 2x"]
        rows = [
            [str(r["tokens"]), f"{r['speed-up']:.2f} ({r['quartiles'][0]:.2f} to "
             f"{r['quartiles'][1]:.2f})", f"{r['share of ideal']:.0%}"]
            for r in layers
        ]  # fmt: skip
        parts += ["A Linear(2048, 2048) at rank 512, half the FLOPs:", table(head, rows)]
    factorised = _read(results / "factorise.json").get("results", [])
    if factorised:
        head = ["weight", "rank", "literal recipe s", "corank s", "speed-up", "loss over literal's"]
        rows = [
            [" x ".join(map(str, r["shape"])), str(r["rank"]), *(
                number(min(r["seconds"][who]), 2) for who in ("literal", "corank")),
             number(r["speedup"], 2), f"{r['loss_ratio']:.5f}"]
            for r in factorised
        ]  # fmt: skip
        parts += ["Factorising one weight, its second moment given, float32:", table(head, rows)]
    return "\n\n".join(["## Speed", *parts]) if parts else ""


def _tries(board: dict[str, Any], results: Path) -> str:
    """What was tried on tuning text, and what the prototype before corank gave."""
    parts = []
    if tuned := board.get("tuning"):
        names = list(dict.fromkeys(n for r in tuned for n in r["measures"]))
        rows = [
            [r["model"], r["key"], *(number(r["measures"].get(n)) for n in names)] for r in tuned
        ]
        parts += ["On tuning text, apart from all evaluation text:"]
        parts += [table(["model", "what", *names], rows)]
    if tries := _read(results / "prototype.json").get("tries"):
        parts += [
            "By a prototype written before corank, on texts of its own, so not comparable with the "
            "tables above. Its settings were chosen looking at tuning packages and at help topics. "
            "G is the metric of the output gradients, C that of the inputs alone, orig stream the "
            "original model's inputs, cascade the compressed model's with the original's outputs "
            "as targets, residual the residual stream's error included, cal extra calibration "
            "text. Mean cosine at keep 0.4 (in domain: tuning packages, other packages; out of "
            "domain: help topics, data set descriptions):",
            table(["what", "remarks", "figures"], [[t["what"], t["n"], t["gave"]] for t in tries]),
        ]
    if tries := _read(results / "factorise-tries.json").get("tries"):
        parts += [
            "To factorise large weights faster, in processor seconds of one thread unless it says "
            "otherwise:",
            table(["what", "gave"], [[t["what"], t["gave"]] for t in tries]),
        ]
    return "\n\n".join(["## What was tried", *parts]) if parts else ""


def _unmeasured(board: dict[str, Any]) -> str:
    """The methods that have no row yet."""
    measured = {row["key"].partition(",")[0] for model in MODELS for row in board.get(model, [])}
    left_out = {"setting", "encodes"}
    methods = [m for m in METHODS.values() if m.area == "compress" and not m.laws & left_out]
    missing = sorted(m.key for m in methods) if measured else []
    left = [f"`{key}`" for key in missing if key not in measured]
    elsewhere = "; at equal bytes, beside quantisation: [the other board](board-bytes.md)"
    return f"Not on this board: {', '.join(left)}{elsewhere}." if left else ""


def _environment(board: dict[str, Any]) -> str:
    found = board.get("environment", {})
    return "## Versions\n\n" + ", ".join(f"{k} {v}" for k, v in sorted(found.items()))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=RESULTS.parent.parent / "docs")
    options = parser.parse_args()
    page, plots = render(options.results)
    pages = {"board-compress.md": page}
    for name, (page, more) in render_adapters(options.results).items():
        pages[name] = page
        plots |= more
    (options.docs / "plots").mkdir(parents=True, exist_ok=True)
    for name, page in pages.items():
        (options.docs / name).write_text(page)
    training = _read(options.results / "train.json")
    if claims := _read(options.results / "claims.json"):
        page = render_claims(claims, render_training_claims(training))
        (options.docs / "claims.md").write_text(page)
    if training:
        page, more = render_training(training)
        (options.docs / "board-train.md").write_text(page)
        plots |= more
    if memory := _read(options.results / "memory.json"):
        (options.docs / "train-memory.md").write_text(render_memory(memory))
    if optim := _read(options.results / "optim.json"):
        kept = _read(options.results / "activation.json")
        structured = _read(options.results / "structured.json")
        (options.docs / "board-optim.md").write_text(render_optimizers(optim, kept, structured))
    if equal := _read(options.results / "equal_bytes.json"):
        names = ("decode", "peaks", "any_size")
        beside = [_read(options.results / f"{name}.json") for name in names]
        page, more = render_equal(equal, *beside)
        (options.docs / "board-bytes.md").write_text(page)
        plots |= more
    if special := _read(options.results / "special.json"):
        (options.docs / "board-special.md").write_text(render_special(special))
    for name, svg in plots.items():
        (options.docs / "plots" / name).write_text(svg)


if __name__ == "__main__":
    main()
