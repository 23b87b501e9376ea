"""LoRA in cycles: what a cycle has learnt is kept, and the next begins anew."""

from __future__ import annotations

from torch import Tensor

from ..control import Control, Training
from ..control.restart import absorb, forget, slow_down, spare, speed_up
from ..models import Site
from ..operators import Operator, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus, zero_low_rank
from ..rewrites.adapting import leaf_dtype
from .counts import each, low_rank
from .dynamic import DYNAMIC

KEPT = (
    "W never changes: finished cycles are added up beside it, as frozen factors with room for "
    "`cycles` cycles, or as one frozen matrix where that is fewer numbers; after `cycles` restarts "
    "the last cycle goes on"
)


def _finished_and_current(w: Tensor, p: dict[str, Tensor], scale: float) -> Tensor:
    if "weight" in p:
        return w + p["weight"] + scale * p["b"] @ p["a"]
    return w + p["b"] @ p["a"] + scale * p["b_1"] @ p["a_1"]


def _in_cycles(
    rank: int, alpha: float, every: int, cycles: int, warmup: int, share: float, forgotten: float
) -> Adaptation:
    """W + kept + (alpha / rank) b a; every `every` steps `share` of b a moves to what is kept."""
    if min(rank, every, cycles) < 1:
        raise ValueError(f"rank={rank}, every={every} and cycles={cycles} must be at least 1")

    def rewrite(op: Operator, site: Site) -> Operator:
        kept = spare(op, rank * cycles, leaf_dtype(op))
        return plus(zero_low_rank(rank), alpha / rank)(Sum(op, kept), site)

    def restart(training: Training) -> None:
        speed_up(training)
        if training.step % every or training.step > every * cycles:
            return
        if training.total is not None and training.step >= training.total:
            return
        absorb(training, share)
        for leaf in training.leaves().values():
            forget(training.attached(), leaf, forgotten)
        training.memory["restarted"] = training.step

    def frozen(out: int, into: int) -> int:
        return min(rank * cycles * (out + into), out * into)

    control = Control(before_step=lambda training: slow_down(training, warmup), after_step=restart)
    return Adaptation(Rewrite(rewrite), low_rank(rank), each(frozen), controls=(control,))


@method(
    Paper(
        "ReLoRA: High-Rank Training Through Low-Rank Updates",
        "2307.05695",
        "the authors' code; algorithm 1 was not read",
        KEPT
        + "; both moments are zeroed where the first is smallest (the code takes the smallest of "
        "each, which can leave a first moment over a second of zero); the rate warms up from 1 / "
        "warmup, the code's from 0; the first cycle starts as LoRA does, where the authors start "
        "it with a zero too; the rest of the model stays frozen unless modules_to_save names it, "
        "where the authors train all of it and begin with a full-rank phase",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, rank=128, alpha=32.0, **_: _finished_and_current(w, p, alpha / rank),
)
def relora(
    rank: int = 128,
    alpha: float = 32.0,
    every: int = 1000,
    cycles: int = 4,
    prune: float = 0.8,
    warmup: int = 100,
) -> Adaptation:
    """LoRA that is merged and begun again every `every` steps, so that its total rank grows.

    At a restart a is drawn again, b is zero, the smallest `prune` (0 to 1) of the optimiser's
    moments are zeroed, and the rate warms up again over `warmup` steps on top of its schedule.
    The rank, alpha, interval, share and warm-up are those of the authors' 1B configuration.
    """
    if not 0 <= prune <= 1:
        raise ValueError(f"prune={prune} must be from 0 to 1")
    return _in_cycles(rank, alpha, every, cycles, warmup, 1.0, prune)


@method(
    Paper(
        "PeriodicLoRA: Breaking the Low-Rank Bottleneck in LoRA Optimization",
        "2402.16141",
        "the abstract, and what third parties report: at the end of each stage the product is "
        "unloaded and weights, optimiser and scheduler begin anew; momentum-based unloading",
        KEPT + "; sections were not read. Ours: unloading the share `momentum` keeps the rest "
        "in b, so that the function stays exactly; the optimiser's state is forgotten; in place of "
        "a scheduler begun anew, the rate warms up again over `warmup` steps; all defaults",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, rank=8, alpha=16.0, **_: _finished_and_current(w, p, alpha / rank),
)
def periodic_lora(
    rank: int = 8,
    alpha: float = 16.0,
    every: int = 100,
    cycles: int = 4,
    momentum: float = 1.0,
    warmup: int = 0,
) -> Adaptation:
    """LoRA unloaded at the end of every stage of `every` steps, whole or in part.

    `momentum`: the share (over 0, to 1) of b a that is unloaded; at 1 a is drawn again.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum={momentum} must be over 0 and at most 1")
    return _in_cycles(rank, alpha, every, cycles, warmup, momentum, 1.0)
