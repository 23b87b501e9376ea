"""State-space mixers of fewer dimensions: of the state, and of the heads."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..metrics import Measure
from ..operators import Operator
from .cuttable import is_mixer, layout_of
from .layout import Layout
from .menu import Menu
from .narrowing import leverages, tails, unread
from .rewrite import Biases, Counts, Family, Unit

#: What is read of the states: see `calibration.collect`.
_NEEDS = frozenset({"gram", "state_gram", "state_scores"})


def shorter_states(measure: Measure, ridge: float, alone: Family) -> Family:
    """Rows of B and C go together, and rows of z and x with the columns of out_proj.

    The size is how many of both there are; both lose the same share, every head its own dimensions
    of z and x, every group of heads its own of the state. Those of the state stay by "state_scores"
    and those of the heads by the ridge leverage scores of "state_gram", `ridge` relative to its
    mean eigenvalue. What in_proj and the convolution after it add to dimensions that go is zero, so
    nothing of them reaches the state, and the gate closes what is gone of the heads.

    The error is that of out_proj's outputs without those channels, and of what is left of their
    energy the share that the dimensions gone have of the squared "state_scores". A unit of another
    kind is left to `alone`.
    """
    return Family(
        menu=partial(_menu, ridge, alone),
        build=partial(_build, ridge, alone),
        counts=partial(_counts, alone),
        measure=measure,
        needs=_NEEDS | measure.needs | alone.needs,
        joint=partial(_joint, ridge),
    )


def silenced(unit: Unit, biases: Biases) -> Biases:
    """The biases of in_proj, out_proj and the convolution, zero for rows that in_proj has lost."""
    layout, mixer = layout_of(unit), unit.sites[0].mixer
    kept = None if layout is None else layout.kept(unit)
    assert layout is not None
    assert mixer is not None
    assert kept is not None
    stays = torch.zeros(mixer.rows, dtype=torch.bool, device=kept.device)
    stays[layout.index(0, kept)] = True
    own, after, beside = biases
    return [_masked(own, stays), after, _masked(beside, stays[mixer.convolved])]


def _masked(bias: Tensor | None, stays: Tensor) -> Tensor | None:
    return None if bias is None else bias.detach() * stays.to(bias)


def _layout(unit: Unit) -> Layout | None:
    return layout_of(unit) if is_mixer(unit) else None


def _scores(ridge: float, unit: Unit) -> tuple[Tensor, Tensor]:
    """How much each channel of the heads matters (inner,), and of the state (states,)."""
    site = unit.sites[0]
    return leverages(site.stat("state_gram").double(), ridge), site.stat("state_scores").double()


def _build(ridge: float, alone: Family, unit: Unit, size: int) -> list[Operator]:
    layout = _layout(unit)
    if layout is None:
        return alone.build(unit, size)
    layout.require(unit, size)
    kept = layout.order(torch.cat(_scores(ridge, unit)))[:size]
    parts = [layout.part(i, op.dense().detach(), kept) for i, op in enumerate(unit.ops)]
    return layout.assemble(unit, kept, parts)


def _counts(alone: Family, unit: Unit, size: int | None) -> list[Counts]:
    layout = _layout(unit)
    return alone.counts(unit, size) if layout is None else layout.counts(unit, size)


def _menu(ridge: float, alone: Family, unit: Unit) -> Menu:
    layout = _layout(unit)
    if layout is None:
        return alone.menu(unit)
    paying = layout.paying(unit)

    def errors() -> list[float]:
        lost = _lost(ridge, unit, layout)
        return [*(float(lost[size // layout.step]) for size in paying), 0.0]

    return Menu([*paying, None], [*paying.values(), unit.bytes], errors)


def _lost(ridge: float, unit: Unit, layout: Layout) -> Tensor:
    """The error after k steps of the layout, k = 0 to all."""
    heads, states = _scores(ridge, unit)
    order = layout.order(torch.cat([heads, states]))
    of_heads = order < len(heads)
    first = order[of_heads]
    moment = unit.sites[1].stat("gram").double()[first][:, first]
    outputs = unread(unit.ops[1].dense().detach().double()[:, first], moment)
    energy = tails(states[order[~of_heads] - len(heads)].square())
    steps = layout.width // layout.step
    gone = (energy / energy[0].clamp_min(1e-30))[:: len(states) // steps]
    lost = outputs[:: len(heads) // steps]
    return lost + (outputs[0] - lost) * gone


def _joint(
    ridge: float, unit: Unit, ops: list[Operator], biases: Biases
) -> tuple[Biases, float] | None:
    layout = _layout(unit)
    if layout is None:
        return None
    made = Unit(unit.sites, ops)
    kept = layout.kept(made)
    assert kept is not None
    lost = _lost(ridge, unit, layout)
    return silenced(made, biases), float(lost[len(kept) // layout.step] / lost[0].clamp_min(1e-30))
