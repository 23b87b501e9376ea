"""Weight decay that looks at the update: where it is spared, and cautious decay."""

from __future__ import annotations

from torch import Tensor

from ..registry import Paper, method
from .galore import inner_of
from .transform import Now, State, Transform


def spared(update: Tensor, share: Tensor | float, now: Now) -> Tensor:
    """`update` with a share (0 to 1, each number its own) of the group's weight decay taken back.

    The optimiser decays every weight before it descends along what is returned.
    """
    decay = now.options["weight_decay"]
    return update - decay * share * now.weight.to(update.dtype) if decay else update


def cautious(inner: Transform) -> Transform:
    """`inner`, with decay only of the numbers that its update does not push away from zero."""

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        out, state = inner.update(x, state, now)
        away = out * now.weight.to(out.dtype) < 0
        return spared(out, away.to(out.dtype), now), state

    return Transform(inner.start, update, inner.carry)


@method(
    Paper(
        "Cautious Weight Decay",
        "2510.12402",
        "algorithm 1, for each of the inner optimisers",
        "parameters that are not matrices decay as AdamW's do",
    ),
    area="optimize",
    laws=("gradient",),
)
def cautious_wd(inner: str = "adam") -> Transform:
    """Weight decay only where the update and the weight have the same sign.

    inner: "adam", "lion", "muon" ...: a name of `corank.optim.INNER`.
    """
    return cautious(inner_of(inner))
