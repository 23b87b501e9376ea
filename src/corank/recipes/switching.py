"""Training that begins dense and goes on in low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.penalties import frobenius_decay
from ..control.switching import measure_scales, switch_when_settled
from ..models import Site
from ..operators import Dense, Operator
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import trains
from .counts import each


@method(
    Paper(
        "Cuttlefish: Low-Rank Model Training without All the Tuning",
        "2305.02538",
        "the authors' code: scaled stable ranks, the rule by which they have settled, the split",
        "ranks are measured every so many steps, not once an epoch, and are not rounded down; "
        "their moving average is the usual one of that span; a weight stays dense if factors would "
        "hold no fewer numbers, where the paper measures how long its layers take (name the "
        "layers to keep dense with targets=); no batch norm is put between the factors",
    ),
    area="train",
    laws=("factorization", "from_w", "preserves", "changes_shape"),
    equation=lambda w, p, **_: p["weight"],
)
def cuttlefish(
    every: int = 100, window: int = 15, slope: float = 0.1, decay: float = 1e-4
) -> Factorization:
    """Dense weights that become b a when their stable ranks have settled, at ranks found so.

    Every `every` steps each stable rank is measured. It has settled when its average over `window`
    measurements moves by at most `slope` from one to the next; then all weights are split, with
    the roots of their singular values in both factors. decay: weight of |b a|^2 / 2 afterwards.
    """
    if every < 1 or window < 1 or slope < 0 or decay < 0:
        raise ValueError(
            f"every={every}, window={window}, slope={slope}, decay={decay}: at least 1, 1, 0 and 0"
        )
    shrink = frobenius_decay(decay)

    def rewrite(op: Operator, site: Site) -> Operator:
        return Dense(trains(op.dense().detach().clone()))

    def after_step(training: Training) -> None:
        if training.step % every == 0:
            switch_when_settled(training, window, slope)

    def penalty(training: Training) -> Tensor:
        return shrink(training) if training.low_ranks() else torch.zeros(())

    control = Control(measure_scales, penalty=penalty if decay else None, after_step=after_step)
    return Factorization(Rewrite(rewrite), each(lambda out, into: out * into), controls=(control,))
