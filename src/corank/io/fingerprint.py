"""Recognising the weights that an adapter was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor

from ..operators import Operator, additions

_ROWS_BYTES = 1 << 24


@torch.no_grad()
def fingerprint(op: Operator) -> str:
    """A number for a weight's values, in hexadecimal: the same on every device, and for a half
    precision weight and its float32 copy.

    Integer arithmetic over the bits, row by row, so it costs little more than reading the weight.
    It tells weights apart; it is no protection against one made to collide.
    """
    matrix = op.dense()
    wide = matrix.dtype == torch.float64
    step = max(1, _ROWS_BYTES // (matrix.shape[1] * 8))
    factors = 2 * torch.arange(matrix.shape[1], device=matrix.device) + 0x9E3779B97F4A7C1
    sums = [_mixed(rows, factors, wide) for rows in matrix.split(step)]
    digest = hashlib.sha256(str(tuple(matrix.shape)).encode())
    digest.update(torch.cat(sums).cpu().numpy().tobytes())
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


def _mixed(rows: Tensor, factors: Tensor, wide: bool) -> Tensor:
    bits = rows.contiguous().view(torch.int64) if wide else rows.float().view(torch.int32).long()
    mixed = bits * factors
    return (mixed ^ (mixed >> 29)).sum(1)  # modulo 2^64
