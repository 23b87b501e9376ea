"""Values of fewer dimensions: v and o rewritten together, in a basis of each head's own."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..linalg import by_volume, two_sided
from ..metrics import Measure, Metric
from ..metrics.metric import times
from ..operators import Operator
from .cuttable import has_known_values, layout_of
from .layout import Layout
from .menu import Menu, menu_of_ranks
from .rewrite import Biases, Counts, Family, Unit
from .truncation import spectrum


def shared_values(measure: Measure, alone: Family, of_outputs: bool = True) -> Family:
    """v -> S^T a, o -> O b S, with b a of rank r for each head's rows of v, and S where they stand.

    b a is the truncation of those rows in `measure`, of what all heads that read them make of it
    (`of_outputs`; S is then where some of them stood), or of the values themselves, a being their
    principal components, the largest first. The size is how many dimensions all heads together
    keep, each as many. The error is that of the outputs, as if each head attended to one token. A
    bias of v becomes part of o's, which is the same since attention's weights sum to one. A unit of
    another kind, or of heads that nobody knows, is left to `alone`.
    """
    return Family(
        menu=partial(_menu, measure, alone, of_outputs),
        build=partial(_build, measure, alone, of_outputs),
        counts=partial(_counts, alone),
        measure=measure,
        needs=measure.needs | alone.needs,
        joint=partial(_joint, measure),
        biased=_biased,
    )


def _layout(unit: Unit) -> Layout | None:
    return layout_of(unit) if has_known_values(unit) else None


def _build(
    measure: Measure, alone: Family, of_outputs: bool, unit: Unit, size: int
) -> list[Operator]:
    layout = _layout(unit)
    if layout is None:
        return alone.build(unit, size)
    layout.require(unit, size)
    rank, metric = size // _count(layout), measure(unit.sites[0].stats)
    kept, rows, columns = [], [], []
    for head, (values, readers) in enumerate(_heads(unit, layout)):
        left = _read(readers) if of_outputs else metric.left
        generator = unit.sites[0].generator()
        b, a = two_sided(values, left, metric.right, rank, generator=generator)
        places = torch.arange(rank)
        if of_outputs:
            places, b, a = _in_own_rows(b, a)
        kept.append(head * len(values) + places)
        rows.append(a)
        columns.append(readers @ b)  # (copies, m, r)
    v = torch.stack(rows, 1).flatten(0, 1)  # (rank * heads, n)
    o = torch.stack(columns).permute(2, 3, 0, 1).flatten(1)  # (m, rank * heads * copies)
    return layout.assemble(unit, torch.stack(kept, 1).flatten(), [v, o])


def _in_own_rows(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (r,) of b a that tell all others, and b a as those rows and how they tell the others.

    Dimensions that stay then go on meaning what they did, so that v can still be compared with
    what it was, and repaired.
    """
    places = by_volume(b)
    inside = b[places]
    return places, b @ torch.linalg.pinv(inside), inside @ a


def _heads(unit: Unit, layout: Layout) -> list[tuple[Tensor, Tensor]]:
    """For each head the rows of v (d, n) and the columns of o that read them (copies, m, d)."""
    v, o = (op.dense().detach().double() for op in unit.ops)
    values = v.unflatten(0, (_count(layout), -1))
    readers = o.unflatten(1, (_count(layout), -1, values.shape[1])).permute(1, 2, 0, 3)
    return list(zip(values, readers, strict=True))


def _count(layout: Layout) -> int:
    (run,) = layout.runs
    return run.heads


def _read(readers: Tensor) -> Tensor:
    """What errors of a head's values cost in the outputs: the sum of O^T O, (d, d)."""
    return (readers.mT @ readers).sum(0)


def _counts(alone: Family, unit: Unit, size: int | None) -> list[Counts]:
    layout = _layout(unit)
    return alone.counts(unit, size) if layout is None else layout.counts(unit, size)


def _menu(measure: Measure, alone: Family, of_outputs: bool, unit: Unit) -> Menu:
    layout = _layout(unit)
    if layout is None:
        return alone.menu(unit)
    paying = layout.paying(unit)

    def ranks() -> Tensor:
        right = measure(unit.sites[0].stats).right
        return torch.stack([
            spectrum(values, Metric(_read(readers), right)) if of_outputs
            else _spent(values, readers, right)
            for values, readers in _heads(unit, layout)
        ]).sum(0)  # fmt: skip

    def spectrum_by_channel() -> Tensor:
        return (ranks() / _count(layout)).repeat_interleave(_count(layout))

    return menu_of_ranks(
        [*paying, None], [*paying.values(), unit.bytes], spectrum_by_channel
    )  # fmt: skip


def _spent(values: Tensor, readers: Tensor, right: Tensor | None) -> Tensor:
    """What each principal direction of the values (d, n) does to the outputs, (d,)."""
    b, a = two_sided(values, None, right, min(values.shape))
    return (b * (_read(readers) @ b)).sum(0) * (a * times(right, a.mT).mT).sum(1)


def _joint(
    measure: Measure, unit: Unit, ops: list[Operator], biases: Biases
) -> tuple[Biases, float] | None:
    layout = _layout(unit)
    if layout is None:
        return None
    right = measure(unit.sites[0].stats).right
    lost = total = 0.0
    made = Unit(unit.sites, ops)
    for (values, readers), (new, reading) in zip(
        _heads(unit, layout), _heads(made, layout), strict=True
    ):
        both, minus = torch.cat([values, new]), torch.cat([readers, -reading], 2)
        lost += float((_read(minus) * (both @ times(right, both.mT))).sum())
        total += float((_read(readers) * (values @ times(right, values.mT))).sum())
    return _moved(unit, layout, biases), max(lost, 0.0) / max(total, 1e-30)


def _biased(unit: Unit) -> list[bool]:
    """o is given a bias where v has one."""
    return [False] * len(unit.sites) if _layout(unit) is None else [False, unit.sites[0].bias]


def _moved(unit: Unit, layout: Layout, biases: Biases) -> Biases:
    """The bias of v in that of o, and zeros in its place."""
    bias, after = biases
    if bias is None:
        return biases
    outputs = sum(
        (readers.sum(0) @ part for (_, readers), part in
         zip(_heads(unit, layout), bias.detach().double().view(_count(layout), -1), strict=True)),
        start=torch.zeros((), dtype=torch.float64, device=bias.device),
    )  # fmt: skip
    if after is not None:
        outputs = outputs + after.detach().double()
    return [torch.zeros_like(bias), outputs.to(bias.dtype)]
