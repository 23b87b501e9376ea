"""Rounding learnt block by block, by signs of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..calibration import Batches
from ..calibration.running import device_of, untouched
from ..calibration.streams import BlockCall, capture, only_stack
from ..errors import SiteError
from ..models import Site, install, read, snapshot
from ..operators import Dense

#: What is learnt of a weight: a shift (out, in) in [-1/2, 1/2], in units of the scale, and factors
#: (2, out, groups) in [0, 1] of the ends of each group's range.
SHIFT, CLIP = "shift", "clip"

Learnt = dict[str, tuple[Tensor, Tensor]]  # path in the block -> shift, factors

_TUNED = ("linear", "conv1d_transposed", "conv")
_WEIGHT = "operator.weight"


@torch.no_grad()
def tune_rounding(
    model: nn.Module, sites: Sequence[Site], data: Batches, bits: int, group: int, steps: int
) -> None:
    """Leave a shift in the statistics of all sites, and factors in those of sites in blocks.

    Each block in turn, on what the blocks before it give once they are quantised, is to give what
    it gives in the original model: for `steps` batches, in a seeded order, everything learnt moves
    by the sign of the mean squared error's gradient, times 1 / steps, decaying linearly. What had
    the least error, relative to that of plain rounding on the same batch, is kept. The model is
    left as it was.

    Raises SiteError for a model without exactly one plain sequence of blocks.
    """
    try:
        stack, device = only_stack(model), device_of(model)
    except SiteError as error:
        remedy = "Use a method that takes each weight alone, such as gptq or awq"
        raise SiteError(error.site, error.problem, remedy) from None
    for site in sites:
        site.stats[SHIFT] = torch.zeros(1, 1).expand(site.shape)
    tuned = [site for site in sites if site.kind in _TUNED]
    undo = snapshot(model, tuned)
    try:
        for site in tuned:
            install(model, site, Dense(read(model, site).dense().detach()))
        with untouched(model):
            captured = [capture(model, stack, batch, device) for batch in data]
            _walk(stack, tuned, captured, bits, group, steps)
    finally:
        undo()


def _walk(
    stack: Sequence[tuple[str, nn.Module]],
    sites: Sequence[Site],
    captured: Sequence[tuple[Tensor, list[BlockCall]]],
    bits: int,
    group: int,
    steps: int,
) -> None:
    original = [hidden for hidden, _ in captured]
    current = [hidden.clone() for hidden in original]
    for index, (name, block) in enumerate(stack):
        calls = [made[index] for _, made in captured]
        inside = {s.name[len(name) + 1 :]: s for s in sites if s.name.startswith(f"{name}.")}
        tuning = _Tuning(block, bits, group, {
            path: block.get_parameter(f"{path}.{_WEIGHT}").detach() for path in inside
        })  # fmt: skip
        original = [tuning.run({}, c, x) for c, x in zip(calls, original, strict=True)]
        if inside:
            generator = next(iter(inside.values())).generator()
            learnt = tuning.learn(calls, current, original, steps, generator)
            for path, site in inside.items():
                site.stats[SHIFT], site.stats[CLIP] = learnt[path]
        current = [
            tuning.run(learnt if inside else {}, c, x) for c, x in zip(calls, current, strict=True)
        ]


@final
@dataclass(frozen=True)
class _Tuning:
    """One block, and its weights by their paths in it."""

    block: nn.Module
    bits: int
    group: int
    wholes: Mapping[str, Tensor]

    def run(self, learnt: Learnt, block_call: BlockCall, x: Tensor) -> Tensor:
        """The block's output, with those weights rounded that something is learnt of."""
        weights = {
            f"{path}.{_WEIGHT}": round_through(self.wholes[path], self.bits, self.group, *pair)
            for path, pair in learnt.items()
        }

        def forward(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.block, weights, args, kwargs)

        return block_call.run(forward, x.clone())

    def learn(
        self,
        calls: Sequence[BlockCall],
        inputs: list[Tensor],
        wanted: list[Tensor],
        steps: int,
        generator: torch.Generator,
    ) -> Learnt:
        """What errs least, relative to plain rounding, on the batch of its step."""
        learnt = {path: _start(w, self.group) for path, w in self.wholes.items()}
        least, best = 1.0, _copy(learnt)
        leaves = [leaf for pair in learnt.values() for leaf in pair]

        def error(i: int) -> Tensor:
            return F.mse_loss(self.run(learnt, calls[i], inputs[i]).float(), wanted[i].float())

        plain = [float(error(i)) for i in range(len(calls))]
        for step, i in enumerate(_order(len(calls), steps, generator)):
            with torch.enable_grad():
                loss = error(i)
            if plain[i] > 0 and float(loss.detach()) / plain[i] < least:
                least, best = float(loss.detach()) / plain[i], _copy(learnt)
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                if gradient is not None:  # of an expert that no token was sent to
                    leaf -= gradient.sign() * (1 - step / steps) / steps
            for shift, clip in learnt.values():
                shift.clamp_(-0.5, 0.5)
                clip.clamp_(0, 1)
        return best


def round_through(weight: Tensor, bits: int, group: int, shift: Tensor, clip: Tensor) -> Tensor:
    """What `quantise_shifted` decodes to, with gradients that pass rounding unchanged."""
    into, top = weight.shape[1], 2**bits - 1
    group = min(group, into)
    grouped, moved = (
        F.pad(x.float(), (0, -into % group)).unflatten(1, (-1, group)) for x in (weight, shift)
    )
    low = grouped.amin(-1).clamp(max=0) * clip[0]
    high = grouped.amax(-1).clamp(min=0) * clip[1]
    scale = ((high - low) / top).to(weight.dtype).float()
    scale = torch.where(scale == 0, 1.0, scale)
    zero = _round(-low / scale).clamp(0, top)[..., None]
    codes = (_round(grouped / scale[..., None] + moved) + zero).clamp(0, top)
    made = ((codes - zero) * scale[..., None]).flatten(1)[:, :into]
    return made.to(weight.dtype)


def _round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def _start(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    groups = -(-weight.shape[1] // group)
    shift = torch.zeros_like(weight, dtype=torch.float32)
    clip = torch.ones(2, len(weight), groups, device=weight.device)
    return shift.requires_grad_(), clip.requires_grad_()


def _copy(learnt: Learnt) -> Learnt:
    return {
        p: (shift.detach().clone(), clip.detach().clone()) for p, (shift, clip) in learnt.items()
    }


def _order(count: int, steps: int, generator: torch.Generator) -> Iterator[int]:
    """Batches in a new order each time round."""
    while steps > 0:
        yield from torch.randperm(count, generator=generator)[:steps].tolist()
        steps -= count
