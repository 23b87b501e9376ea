"""How much may stay: fractions and sizes turned into bytes stored at the targeted sites."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from ..operators import Operator
from ..operators.counting import count_each

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def budget_bytes(
    model: nn.Module, ops: Sequence[Operator], *, keep: float | None, size: str | None
) -> int:
    """How many of the bytes that `ops`, the targeted weights, store now may stay.

    `keep` in (0, 1] is their fraction; `size`, such as "3.2GB" (bytes) or "1.1B" (parameters of
    the weights' own dtype), is for the whole model. Exactly one must be given.

    Raises ValueError for a fraction outside (0, 1] and for a size that cannot be read or met.
    """
    if (keep is None) == (size is None):
        raise ValueError("give exactly one of keep= (a fraction) and size= (such as '1.2GB')")
    numel, targeted = (sum(each) for each in zip(*count_each(ops), strict=True))
    if keep is not None:
        if isinstance(keep, bool) or not 0 < keep <= 1:
            raise ValueError(f"keep={keep} is outside (0, 1]: it is the fraction that stays")
        return int(keep * targeted + 1e-9)
    assert size is not None
    wanted, in_bytes = parse_size(size)
    stored = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    if in_bytes:
        others = sum(t.numel() * t.element_size() for t in stored) - targeted
        left = wanted - others
    else:
        others = sum(t.numel() for t in model.parameters()) - numel
        left = (wanted - others) * targeted // numel
    if left <= 0:
        unit = "bytes" if in_bytes else "parameters"
        raise ValueError(
            f"size={size!r} is less than the {others:,} {unit} that are not targeted: "
            "target more sites or ask for a larger size"
        )
    return left


def parse_size(text: str) -> tuple[int, bool]:
    """'3.2GB' -> (3200000000, True), bytes; '1.1B' or '350M' -> (count, False), parameters.

    A final B after K, M, G or T means bytes; a B alone means billions of parameters. KiB, MiB and
    GiB are powers of 1024.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"cannot read the size {text!r}: write it as '3.2GB' or '1.1B'")
    number, unit, binary, byte = match.groups()
    if byte and not unit:
        return round(float(number) * 10**9), False
    scale = UNITS[unit.upper()]
    if binary:
        if not (unit and byte):
            raise ValueError(f"cannot read the size {text!r}: write it as '3.2GiB'")
        scale = 1024 ** (list(UNITS).index(unit.upper()))
    return round(float(number) * scale), bool(byte)
