"""Claims about training, tried on the rows of its board."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from benchmarks.board.summary import link, number, table
from benchmarks.claiming.judging import verdict
from benchmarks.training.entries import Entry, list_entries
from benchmarks.training.plots import held
from benchmarks.training.rows import PLAIN
from benchmarks.training.tasks import TASKS
from corank.registry import find_method

#: What a model that has learned nothing reaches: loss in nats over the vocabulary, one in ten.
CLASSES = 10


@dataclass(frozen=True)
class Claim:
    """What a paper says of the first method beside the second; both are names of rows."""

    paper: str
    says: str
    kind: Literal["better", "close"]
    first: str
    second: str
    tasks: tuple[str, ...] = ("small", "medium")
    measure: str = ""
    written: str = ""  #: the arXiv number where it says so, if not the method's own paper

    @property
    def switches(self) -> bool:
        """Whether it is of a method that is dense until it has found its ranks."""
        return self.first == "cuttlefish, factorize"

    @property
    def arxiv(self) -> str:
        """Of the paper that says so."""
        method, kind = self.first.split(", ")
        area = "adapt" if kind == "adapt" else None
        return self.written or find_method(method, area).paper.arxiv


DENSE, OTHERS = "adamw, optimizer", ("small", "medium", "packages")
DIGITS = ("digits",)
LOW = f"{PLAIN}, factorize"


def _optimizer(paper: str, says: str, kind: Any, first: str, second: str) -> Claim:
    return Claim(paper, says, kind, f"{first}, optimizer", f"{second}, optimizer", OTHERS)


def _factorised(
    paper: str, says: str, kind: Any, first: str, second: str, tasks: Any = None, written: str = ""
) -> Claim:
    return Claim(paper, says, kind, f"{first}, factorize", second, tasks or ("small", "medium"),
                 written=written)  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    _optimizer("GaLore", "is on par with full-rank Adam", "close", "galore", "adamw"),
    _optimizer("Fira", "beats GaLore at equal rank", "better", "fira", "galore"),
    _optimizer("FRUGAL", "beats GaLore at an equal share of state", "better",
               "frugal", "galore"),
    _optimizer("APOLLO", "is on par with AdamW", "close", "apollo", "adamw"),
    _optimizer("COAP", "is on par with Adam", "close", "coap", "adamw"),
    _optimizer("COAP", "beats GaLore", "better", "coap", "galore"),
    _optimizer("Q-GaLore", "costs little beside GaLore", "close", "qgalore",
               "galore"),
    _optimizer("GaLore+", "beats GaLore", "better", "galore_plus", "galore"),
    _optimizer("Online Subspace Descent", "beats GaLore", "better",
               "online_subspace_descent", "galore"),
    _optimizer("Grass", "costs little beside GaLore", "close", "grass", "galore"),
    _optimizer("GradNormLoRP", "beats GaLore", "better", "gradnormlorp", "galore"),
    _optimizer("Flora", "is on par with full-rank training", "close", "flora_optim",
               "adamw"),
    _optimizer("DCT-AdamW", "matches bases from the SVD", "close", "dct_adamw",
               "galore"),
    _optimizer("SN + SM", "beats Adam at equal tokens", "better",
               "subset_norm_momentum", "adamw"),
    _optimizer("SMMF", "is on par with Adam", "close", "smmf", "adamw"),
    _optimizer("8-bit optimisers", "8 bits of state cost little", "close",
               "adamw_8bit", "adamw"),
    _optimizer("AdamP", "beats Adam", "better", "adamp", "adamw"),
    _optimizer("M-FAC", "beats Adam", "better", "mfac", "adamw"),
    _optimizer("MKOR", "beats Adam at equal steps", "better", "mkor", "adamw"),
    _optimizer("SINGD", "beats AdamW at equal steps", "better", "singd", "adamw"),
    Claim("ReLoRA", "beats LoRA from random weights", "better", "relora, adapt",
          "lora, adapt"),
    Claim("ReLoRA", "approaches full-rank training", "close", "relora, adapt", DENSE),
    _factorised("SLTrain", "beats plain low rank", "better", "sltrain", LOW),
    _factorised("SLTrain", "approaches full-rank training", "close", "sltrain", DENSE),
    _factorised("LOST", "beats plain low rank", "better", "lost", LOW),
    _factorised("LOST", "approaches full-rank training", "close", "lost", DENSE),
    _factorised("LOST", "beats SLTrain", "better", "lost", "sltrain, factorize"),
    _factorised("SST", "beats ReLoRA", "better", "sst", "relora, adapt"),
    _factorised("SST", "approaches full-rank training", "close", "sst", DENSE),
    _factorised("Structured FFNs", "its guide gains over no guide", "better",
                "structured_ffn", LOW),
    _factorised("BTT", "beats plain low rank", "better", "btt", LOW),
    _factorised("Spectral initialisation", "beats a random start of the factors",
                "better", "spectral_init", LOW, ("small", "medium", "digits"), "2105.01029"),
    _factorised("CompAct", "costs little beside full activations", "close", "compact",
                DENSE),
    _factorised("RMM", "costs little beside full activations", "close", "rmm_linear",
                DENSE),
    _factorised("Cuttlefish", "is on par with full-rank training", "close",
                "cuttlefish", DENSE, ("small", "medium", "digits")),
    _factorised("Maestro", "is on par with full-rank training", "close", "maestro",
                DENSE, ("small", "medium", "digits")),
    _factorised("TRP", "is on par with full-rank training", "close", "trp", DENSE,
                DIGITS),
    _factorised("DLRT", "is on par with full-rank training", "close", "dlrt", DENSE,
                DIGITS),
    _factorised("Tucker DLRT", "is on par with full-rank training", "close",
                "tucker_dlrt", DENSE, DIGITS),
    Claim("CondLR", "is more robust to attacks than full-rank training", "better",
          "condlr, factorize", DENSE, DIGITS, "under attack"),
    Claim("CondLR", "is more robust to noise than full-rank training", "better",
          "condlr, factorize", DENSE, DIGITS, "under noise"),
    _factorised("Weight normalisation", "converges faster", "better", "weight_norm",
                DENSE, DIGITS),
)  # fmt: skip


def render_claims(board: dict[str, Any]) -> str:
    """A table, a row for each claim and task that both sides were run on; "" without any."""
    entries = {
        task.name: {
            f"{e.name}, {e.kind}": e
            for e in list_entries(board.get(task.name, []), task.quality, task.higher)
        }
        for task in TASKS.values()
    }
    rows = []
    for claim in CLAIMS:
        for task in claim.tasks:
            sides = [entries[task].get(name) for name in (claim.first, claim.second)]
            if all(side and len(side.rows) > 1 for side in sides):
                rows.append(_row(claim, task, *sides))
    header = ["paper", "claim", "task", "measured", "first side", "second side", "verdict"]
    return table(header, rows) if rows else ""


def _row(claim: Claim, name: str, first: Entry, second: Entry) -> list[str]:
    measure = claim.measure or TASKS[name].quality
    shown = "loss" if measure == "perplexity" else measure
    values = [_values(side, measure) for side in (first, second)]
    start = None
    if claim.kind == "close":
        start = math.log(_vocabulary()) if shown == "loss" else 1 / CLASSES
    judged = "not held"
    if claim.switches and first.mean("bytes", "weights") >= second.mean("bytes", "weights"):
        judged = "not tried: it never switched"
    elif all(map(math.isfinite, values[0])):
        judged = verdict(values[0], values[1], shown != "loss", start)
    texts = [
        f"{side.name}: {number(mean(found))} ± {number(stdev(found))}; {held(side) / 1e6:.2f} MB"
        if all(map(math.isfinite, found)) else f"{side.name}: diverged"
        for side, found in zip((first, second), values, strict=True)
    ]  # fmt: skip
    paper = link(claim.paper, claim.arxiv)
    return [paper, f"{claim.says} ({claim.kind})", name, shown, *texts, judged]


def _values(entry: Entry, measure: str) -> list[float]:
    found = entry.values(measure)
    return [math.log(value) for value in found] if measure == "perplexity" else found


def _vocabulary() -> int:
    from benchmarks.reference.network import VOCABULARY

    return VOCABULARY
