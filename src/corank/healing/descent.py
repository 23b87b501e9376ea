"""What healing trains, and how far a step takes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..models import blocks, is_rewritten, read, survey
from ..operators import Operator, Quantised, VectorQuantised

BETAS = (0.9, 0.98)  # some hundred steps: the usual 0.999 would average over all of them
WARM_UP = 0.05
#: Steps of a scale, over those of other parameters and over its own root mean square.
RELATIVE = 10.0


class Descent:
    """AdamW on what `model` has to train, with a warm-up and a cosine decay to zero.

    That is whatever requires grad inside the model's blocks (everywhere, if it has none) and in
    what was rewritten outside of them; with `scales`, also the scales and codebooks of rewritten
    weights in codes, which are frozen otherwise. Steps are taken in float32 and rounded after:
    in bfloat16 those of numbers near one would be lost.
    """

    def __init__(self, model: nn.Module, learning_rate: float, scales: bool) -> None:
        rewritten = [read(model, site) for site in survey(model)[0] if is_rewritten(model, site)]
        sizes = _scales(rewritten) if scales else []
        self.parameters = [*_trainable(model, rewritten), *sizes]
        if not self.parameters:
            raise ValueError("nothing to heal: no parameter of the model requires grad")
        self._copies = [_wide(p) for p in self.parameters]
        split = len(self.parameters) - len(sizes)
        groups = [{"params": self._copies[:split], "step": learning_rate}] if split else []
        for wide in self._copies[split:]:
            size = float(wide.detach().square().mean().sqrt())
            groups.append({"params": [wide], "step": learning_rate * RELATIVE * size})
        fused = all(p.device.type in ("cpu", "cuda") for p in self.parameters)
        self._optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=fused
        )

    def step(self, done: float) -> None:
        """One step by the gradients there are, used up by it; done: of the whole way, in [0, 1)."""
        for parameter, wide in zip(self.parameters, self._copies, strict=True):
            if wide is not parameter and parameter.grad is not None:
                wide.grad, parameter.grad = parameter.grad.to(wide.dtype), None
        nn.utils.clip_grad_norm_(self._copies, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = group["step"] * _schedule(done)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for parameter, wide in zip(self.parameters, self._copies, strict=True):
                if wide is not parameter:
                    parameter.copy_(wide)

    @contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """Only what is trained requires grad inside; after an error it is as it was before."""
        before = [p.detach().clone() for p in self.parameters]
        flags = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
        wanted = {id(p) for p in self.parameters}
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted).grad = None
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, before, strict=True):
                    parameter.copy_(value)
                    parameter.grad = None
            raise
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def _trainable(model: nn.Module, rewritten: Sequence[Operator]) -> list[nn.Parameter]:
    inside: list[nn.Module] = [block for _, block in blocks(model)]
    inside = [*inside, *rewritten] if inside else [model]
    found = {id(p): p for part in inside for p in part.parameters() if p.requires_grad}
    return list(found.values())


def _scales(rewritten: Sequence[Operator]) -> list[nn.Parameter]:
    """What codes are multiplied by or looked up in, where it does not train already."""
    parts = [part for op in rewritten for part in op.modules()]
    held = [part.scale for part in parts if isinstance(part, Quantised)]
    held += [part.codebooks for part in parts if isinstance(part, VectorQuantised)]
    frozen = (p for p in held if isinstance(p, nn.Parameter) and not p.requires_grad)
    return list({id(p): p for p in frozen}.values())


def _wide(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or a copy in float32 of one that is narrower."""
    if torch.finfo(parameter.dtype).bits >= 32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def _schedule(done: float) -> float:
    if done < WARM_UP:
        return max(done, 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
