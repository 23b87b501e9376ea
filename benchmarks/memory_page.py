"""The page of bytes for the GaLore paper's models, from benchmarks/results/memory.json."""

from __future__ import annotations

from typing import Any

from benchmarks.board.summary import table

INTRODUCTION = """\
# What a step of training takes

The LLaMA sizes of the GaLore paper (arXiv 2403.03507) with 32000 tokens, an untied head and rows of
256 tokens, counted on the meta device by what `corank train CONFIG --dry-run` prints; the tests
hold that to what a real step allocates. Weights, gradients and state are in bfloat16.
`python -m benchmarks.memory` counts, `python -m benchmarks.pages` writes this page.

## Weights and optimiser state, beside the paper's

In GB, 10^9 bytes, and in GiB, 2^30; the paper's column is as printed there."""

EXPLANATION = """\
Full rank is three numbers of two bytes a parameter: weight, first and second moment. The paper's
figures are that, in units and sizes that vary from line to line: 2.06 is 350M's in GiB to the last
digit, and 0.76 is nearly 130M's in GiB, while 0.36 and 7.80 are six bytes times the names 60M and
1.3B rather than times the parameters that the configurations have.

GaLore's state is smaller than AdamW's by the same matrices in both columns, yet ours is the larger
figure by a few percent to a sixth. We count all that a step allocates: the basis (the shorter side
times the rank) and two moments (rank times the longer side) of every linear layer in the blocks,
and two full moments of the embedding, the head and the norms, which are not projected. At 60M the
embedding and the head are 33 of 58 million parameters, so what is taken of them decides the
figure. The paper's table is an estimate whose parts are not printed; nothing here was chosen to
meet it.

## A whole step

One sequence a batch, in GB. Activations are what autograd keeps for the backward pass."""


def render_memory(found: dict[str, Any]) -> str:
    """The page; figures only from the results."""
    rows = found["rows"]
    beside = [
        [row["size"], f"{row['parameters']:,}", str(row["rank"]),
         *(f"{_held(row[key]) / unit:.2f}" for key in ("adamw", "galore")
           for unit in (1e9, 2**30)),
         *(("-", "-") if row["paper"] is None else (f"{v:.2f}" for v in row["paper"]))]
        for row in rows
    ]  # fmt: skip
    header = ["model", "parameters", "rank", "AdamW GB", "GiB", "GaLore GB", "GiB",
              "paper, full rank", "paper, GaLore"]  # fmt: skip
    steps = [
        [row["size"], name, *(f"{row[key][part] / 1e9:.2f}" for part in _PARTS)]
        for row in rows
        for key, name in (("adamw", "AdamW"), ("galore", f"GaLore, rank {row['rank']}"))
    ]
    parts = [INTRODUCTION, table(header, beside), EXPLANATION,
             table(["model", "optimiser", *_PARTS], steps)]  # fmt: skip
    versions = ", ".join(f"{k} {v}" for k, v in sorted(found.get("environment", {}).items()))
    return "\n\n".join([*parts, f"Counted with {versions}."]) + "\n"


_PARTS = ("weights", "gradients", "state", "activations", "total")


def _held(memory: dict[str, int]) -> int:
    return memory["weights"] + memory["state"]
