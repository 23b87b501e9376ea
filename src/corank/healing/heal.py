"""`corank.heal`: train a compressed model back towards the original, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import Batches, batches
from ..calibration.data import to_device
from ..calibration.outputs import main_output
from ..calibration.running import call, device_of, untouched
from ..models import blocks, is_rewritten, read, survey
from ..operators import Operator
from .features import block_features
from .losses import channel_loss, feature_loss, output_loss, perturbation_loss, token_mask

WARM_UP = 0.05
BETAS = (0.9, 0.98)  # some hundred steps: the usual 0.999 would average over all of them


@dataclass
class Healed:
    """What healing did: the loss of every step, and where it stopped."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.losses)


def heal(
    model: nn.Module,
    original: nn.Module,
    data: Any,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    learning_rate: float = 6e-4,
    features: float = 1.0,
    output: float = 1.0,
    channels: float = 0.0,
    perturbation: float = 0.0,
    epsilon: float = 0.0,
    seed: int = 0,
    clock: Callable[[], float] = perf_counter,
    progress: Callable[[str, float], None] | None = None,
    **reading: Any,
) -> Healed:
    """Distil `original` into `model`, in place, on `data`: no labels are used.

    loss = features * mean over blocks of the relative squared error of their outputs
         + channels * mean over blocks of the distance of their channels' means and variances
         + output * KL(original || model) of the logits (relative squared error without logits)
         + perturbation * mean over rewritten weights of max(0, max|W' - W| - epsilon)^2.

    Trains, with AdamW, a warm-up over the first twentieth and a cosine decay to zero, whatever
    requires grad inside the model's blocks (everywhere, if it has none) and in what was rewritten
    outside of them, for `minutes` or `steps`.
    Minutes hold everything, the original's passes too, and a step that would not fit is not begun.
    They are of `clock`, in seconds: `time.process_time` counts the processor's instead.
    data and `reading`: as in `corank.calibration.batches`. Batches are visited in a new seeded
    order each time round. Training runs in evaluation mode: no dropout.

    Raises ValueError if nothing can be trained or, with the weights as they were, if the loss stops
    being finite.
    """
    if (minutes is None) == (steps is None):
        raise ValueError("say how long to heal by exactly one of minutes= and steps=")
    started = clock()
    held = data if isinstance(data, Batches) else batches(data, **{"by_length": True} | reading)
    trained = _trained(model)
    told = progress or (lambda stage, fraction: None)
    pairs = list(_pairs(model, original)) if perturbation else []
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    optimizer = torch.optim.AdamW(
        trained, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=fused
    )
    healed, begun = Healed(), clock()

    def fraction() -> float:
        if steps is not None:
            return healed.steps / steps
        assert minutes is not None
        now = clock()
        coming = (now - begun) / healed.steps if healed.steps else 0.0
        return (now - started + coming) / (60 * minutes)

    with (
        _restored_on_error(trained),
        _quiet(model),
        _training_only(model, trained),
        untouched(original),
        block_features(model) as mine,
        block_features(original) as theirs,
    ):
        for batch in _shuffled(held, seed, device_of(model)):
            done = fraction()
            if done >= 1:
                break
            told("healing", done)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(done)
            with torch.no_grad():
                expected = call(original, batch)
            found = call(model, batch)
            mask = token_mask(batch)
            logits = hasattr(found, "logits")
            loss = output * output_loss(main_output(found), main_output(expected), mask, logits)
            if mine:
                loss = loss + features * feature_loss(mine, theirs, mask)
                if channels:
                    loss = loss + channels * channel_loss(mine, theirs, mask)
            if pairs:
                loss = loss + perturbation * perturbation_loss(pairs, epsilon)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"healing: the loss is {float(loss.detach())} at step {healed.steps}. "
                    "Lower learning_rate, or look for inputs that overflow"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            healed.losses.append(float(loss.detach()))
    optimizer.zero_grad()
    healed.seconds = clock() - started
    return healed


def _trained(model: nn.Module) -> list[nn.Parameter]:
    inside: list[nn.Module] = [block for _, block in blocks(model)]
    rewritten = (read(model, site) for site in survey(model)[0] if is_rewritten(model, site))
    inside = [*inside, *rewritten] if inside else [model]
    found = {id(p): p for block in inside for p in block.parameters() if p.requires_grad}
    if not found:
        raise ValueError("nothing to heal: no parameter of the model requires grad")
    return list(found.values())


def _pairs(model: nn.Module, original: nn.Module) -> Iterator[tuple[Operator, Tensor]]:
    """Every rewritten operator with the weight that it stands for."""
    for site in survey(model)[0]:
        if is_rewritten(model, site):
            yield read(model, site), read(original, site).dense().detach()


def _schedule(done: float) -> float:
    if done < WARM_UP:
        return max(done, 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _shuffled(held: Batches, seed: int, device: torch.device) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(held), generator=generator).tolist():
            yield to_device(held[index], device)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the modules' own modes after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _training_only(model: nn.Module, trained: list[nn.Parameter]) -> Iterator[None]:
    """Nothing else requires grad inside, so that no gradient is computed that nobody uses."""
    wanted = {id(p) for p in trained}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in wanted]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def _restored_on_error(parameters: list[nn.Parameter]) -> Iterator[None]:
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        raise
