"""Weights that stay in codes while they train."""

from __future__ import annotations

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.requantising import ends_interval, merge_all, split_all
from ..models import Site
from ..operators import Dense, Operator
from ..quantizers import to_normal_float
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import require_rank, trains
from ..rewrites.projected import along_gradient, beside_codes
from .counts import each


@method(
    Paper(
        "LoQT: Low Rank Adapters for Quantized Training",
        "2405.16528",
        "the authors' code: the projection on the shorter side from the gradient of the merged "
        "weight, both in NF4, the alternation of codes and factor, intervals that grow",
        "at a merge all weights are whole for one step, where the code goes from layer to layer; "
        "that step moves biases and norms and no weight, as in the code; the factor's moments "
        "begin anew after a merge, where the code lets those of the last projection go on; the "
        "first codes are of the weight itself, where the code quantises it once before; the scales "
        "are not quantised again",
    ),
    area="train",
    laws=("factorization", "from_w", "preserves", "moves_frozen", "changes_shape"),
)
def loqt(
    rank: int = 128,
    scale: float = 0.5,
    every: int = 100,
    growth: float = 1.2,
    rounds: int = 5,
    bits: int = 4,
    group: int = 64,
) -> Factorization:
    """Codes and a product beside them whose one factor trains; merged and split again in intervals.

    At the first step, and after each merge, W becomes Q + scale * b P: P are the leading singular
    vectors of W's gradient, `bits` and `group` those of the normal floats that Q and P are kept in.
    The i-th interval is `every` + int(growth^i) steps long, the first `every`; growth 0: all are.
    `rounds` of quantising W less the product and fitting b to what is lost; 0: b starts at zero.
    Until the first step, and where training ends right at a merge, weights are whole.
    """
    if min(rank, every) < 1 or min(growth, rounds) < 0 or scale <= 0:
        raise ValueError(
            f"rank={rank}, every={every}, growth={growth}, rounds={rounds}, scale={scale}: at "
            "least 1, 1, 0 and 0, and over 0"
        )
    quantizer = to_normal_float(bits, group)

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        return Dense(trains(op.dense().detach().clone()))

    def split(weight: Tensor, gradient: Tensor, site: Site, draws: torch.Generator) -> Operator:
        projection = along_gradient(gradient, rank, draws)
        return beside_codes(weight, projection, quantizer, site, scale, rounds)

    def after_step(training: Training) -> None:
        over = training.total is not None and training.step >= training.total
        if not over and ends_interval(training.step, every, growth):
            merge_all(training)

    control = Control(
        before_step=lambda training: split_all(training, split), after_step=after_step
    )
    return Factorization(Rewrite(rewrite), each(lambda out, into: out * into), controls=(control,))
