"""Recognising the weights that an adapter was made for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

import torch

from ..operators import Operator, additions

#: How many numbers of a weight are looked at: all of a small one, and enough to load quickly onto
#: a large model.
_SAMPLE = 1 << 20


@torch.no_grad()
def fingerprint(op: Operator) -> str:
    """A digest of a weight's values, in hexadecimal: the same on every device, and for a half
    precision weight and its float32 copy.

    Of a weight of more than a million numbers it sees about a million, spread over all rows and
    columns: enough to tell checkpoints apart, and no proof that nothing was edited.
    """
    matrix = op.dense()
    step = max(1, matrix.numel() // _SAMPLE) | 1 if matrix.numel() > _SAMPLE else 1
    while math.gcd(step, matrix.shape[1]) > 1:
        step += 2
    seen = matrix.reshape(-1)[::step]
    seen = seen if seen.dtype == torch.float64 else seen.float()
    digest = hashlib.sha256(str(tuple(matrix.shape)).encode())
    digest.update(seen.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def follows_weight(op: Operator, trains: Collection[str], shared: Collection[str] = ()) -> bool:
    """Whether what an adapter means depends on the weight that it was made for.

    So for W' that is more than W plus something, and for frozen leaves of its own beside W, which
    are taken to be computed from W; `shared` ones, the same at several sites, are not.
    """
    if additions(op) is None:
        return True
    return any(
        leaf.is_floating_point() and name not in trains and name not in shared
        for name, leaf in op.named_parameters(remove_duplicate=False)
    )
