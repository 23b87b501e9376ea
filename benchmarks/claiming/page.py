"""The page of claims, from what was measured: no figure is typed here."""

from __future__ import annotations

from typing import Any

from benchmarks.board.summary import link, number, table
from benchmarks.claiming.judging import RULE, Figure, judge
from benchmarks.claiming.listed import CLAIMS, Claim, Side
from benchmarks.claiming.pairs import PAIRS, VALUES, WIDTH
from benchmarks.claiming.runs import GRIDS, SEEDS

INTRODUCTION = f"""\
# Claims of papers, tried small

For each adapter whose paper's headline claim can be tried in seconds: what the paper says, what was
measured here, and whether it held. `python -m benchmarks.claims` measures and
`python -m benchmarks.pages` writes this page from `benchmarks/results/claims.json`.

These are very small models and very short runs: a verdict tells what happens at this scale, and
says little about the scale that the paper writes of. "Not held" here does not refute a paper.

- **digits**: a convolutional network that knows upright digits learns them turned by a quarter;
  "kept" is its accuracy on the upright ones afterwards. The three inner layers are adapted; full
  fine-tuning trains everything.
- **prose**: the small LLaMA of `benchmarks/reference`, trained on code, learns prose; "kept" is the
  negative loss on code.
- **pairs**: a network of three {WIDTH} x {VALUES} weights that knows {PAIRS} random keys' values
  learns {PAIRS} others: pure memory, so it is asked what it was trained on.

Training is Adam without weight decay, the rate falling linearly to 0. Each side's rate is the one
of the grid with the lowest loss on tuning rows (of pairs: on pairs of their own) after the same
number of steps, with a seed that no figure is made with: {{grids}}. "Loss" is the cross-entropy on
evaluation rows after the given steps. A star marks a rate at the grid's edge, where a better one
may lie beyond. Both sides see the same batches for a seed. Parameters that are not given are the
defaults: apart from the rate nothing is tuned, neither scales nor schedules that were made for
larger models and longer runs. ± is the deviation over seeds. Where a claim is about something else
than the new task, how well that goes is told beside: who learns less forgets less easily."""
CHANGED = """\
The verdicts are not blind. After first figures had been seen, these were changed:

- The grids ended at 0.1 (prose: ran from 0.001 to 0.01) and were widened for all, as tuning losses
  were lowest at an edge. Until then VeRA, FourierFT and SVFT stood as "not held".
- rsLoRA at each rank's own rate was added, beside one rate for both ranks, where rank 64 diverges.
- DyLoRA first ran for 50 steps, in which it learned nothing, and was cut without its scale."""


TRAINING = """\
Tried on the rows of [the board of training](board-train.md), with the rule above; what a side gains
is counted from a model that has learned nothing (loss ln of the vocabulary, accuracy one in ten).
MB are of weights, gradients and the optimiser's state. With two or three seeds the scatter itself
is barely known, and all that the board's page says of short runs holds here too."""


def render_claims(results: dict[str, Any], training: str = "") -> str:
    """The page. training: the table of the claims about training, if any were tried."""
    grids = "; ".join(
        f"{task} {', '.join(f'{rate:g}' for rate in grid)} ({len(SEEDS[task])} seeds)"
        for task, grid in GRIDS.items()
    )
    judged = [(claim, found) for claim in CLAIMS if (found := judge(claim, results))]
    parts = [INTRODUCTION.format(grids=grids), f"## The rule\n\n{RULE}", "## Verdicts"]
    parts += [table(
        ["paper", "claim", "task", "steps", "measured", "first side", "second side", "verdict"],
        [_row(claim, *found) for claim, found in judged],
    )]  # fmt: skip
    counted = [found[2] for _, found in judged]
    parts += [", ".join(f"{counted.count(v)} {v}" for v in dict.fromkeys(sorted(counted))) + "."]
    if notes := [f"- {c.paper} ({c.key}): {c.note}" for c, _ in judged if c.note]:
        parts += ["## Notes", "\n".join(notes)]
    parts += [f"## What was changed\n\n{CHANGED}"]
    if missing := [c for c in CLAIMS if not judge(c, results)]:
        parts += ["## Not tried", "\n".join(f"- {c.paper} ({c.key}): {c.says}" for c in missing)]
    if training:
        parts += [f"## Training\n\n{TRAINING}", training]
    versions = sorted(results.get("environment", {}).items())
    parts += ["## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions)]
    return "\n\n".join(parts) + "\n"


def _row(claim: Claim, first: Figure, second: Figure, verdict: str) -> list[str]:
    setting = claim.first.setting
    paper = link(claim.paper, claim.arxiv)
    measured = claim.first.measure + (" (difference)" if claim.first.less else "")
    sides = [
        f"{side.setting.label}: {number(f.mean)} ± {number(f.deviation)}{_learned(side, f)}; "
        f"{f.trainable} trained, rate {f.rate:g}{'*' if f.at_edge else ''}"
        for side, f in ((claim.first, first), (claim.second, second))
    ]
    says = f"{claim.says} ({claim.kind})"
    return [paper, says, setting.task, str(setting.steps), measured, *sides, verdict]


def _learned(side: Side, found: Figure) -> str:
    """How well the new task goes, where the claim is about something else."""
    name, value = found.learned
    return "" if side.measure in ("accuracy", "loss") else f"; {name} {number(value)}"
