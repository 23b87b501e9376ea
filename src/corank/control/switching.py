"""Dense weights that become low-rank products once their ranks have settled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..linalg import exact_svd
from ..linalg.ranks import stable_rank
from ..operators import Dense, LowRank, Operator
from .control import Training
from .replacing import replace

_AVERAGED = 11  # slopes, of the last measurements, of which the mean counts


def measure_scales(training: Training) -> None:
    """Remember how far each weight's stable rank is under its full rank at the start."""
    scales = {site: min(op.shape) / _stable(op) for site, op in training.operators.items()}
    training.memory |= {"scale": scales, "history": {site: [] for site in scales}, "settled": []}


def switch_when_settled(training: Training, window: int, slope: float) -> None:
    """Measure every stable rank; once all have settled, make every weight a low-rank product.

    The rank is the stable rank times what brings it to full rank at the start. A weight for which
    the factors would hold no fewer numbers stays dense.
    """
    if "switched" in training.memory:
        return
    history, settled = training.memory["history"], training.memory["settled"]
    left = len(history) - len(settled)
    for site, op in training.operators.items():
        history[site].append(_stable(op))
        limit = 2 * slope if left == 1 else slope
        if site not in settled and _flat(history[site], window, limit):
            settled.append(site)
    if len(settled) == len(history):
        training.memory["switched"] = training.step
        for site, op in list(training.operators.items()):
            wanted = math.ceil(history[site][-1] * training.memory["scale"][site])
            rank = min(wanted, *op.shape)
            if rank * sum(op.shape) < op.shape[0] * op.shape[1]:
                replace(training, site, _factored(op, rank))


def _stable(op: Operator) -> float:
    return stable_rank(torch.linalg.svdvals(op.dense().detach().float()))


def _flat(history: Sequence[float], window: int, limit: float) -> bool:
    """Whether the smoothed history has hardly changed of late."""
    if len(history) < max(window, 2):
        return False
    keep, smooth = 1 - 2 / (window + 1), [history[0]]
    for value in history[1:]:
        smooth.append(keep * smooth[-1] + (1 - keep) * value)
    (slopes,) = torch.gradient(torch.tensor(smooth, dtype=torch.float64))
    return float(slopes[-_AVERAGED:].abs().mean()) <= limit


def _factored(op: Operator, rank: int) -> LowRank:
    assert isinstance(op, Dense)
    u, s, vh, _ = exact_svd(op.weight.detach())
    root = s[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * vh[:rank]
    return LowRank(*(nn.Parameter(x.to(op.dtype).contiguous()) for x in (b, a)))
