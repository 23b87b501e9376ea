"""`corank.heal`: train a compressed model back towards the original, without labels."""

from __future__ import annotations

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
from ..models import is_rewritten, read, survey
from ..operators import Operator
from .descent import Descent
from .features import block_features
from .losses import channel_loss, feature_loss, output_loss, perturbation_loss, token_mask


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
    scales: bool = True,
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

    Trains, with AdamW in float32, a warm-up over the first twentieth and a cosine decay to zero,
    whatever requires grad inside the model's blocks (everywhere, if it has none) and in what was
    rewritten outside of them, for `minutes` or `steps`. Codes stay as they are; their `scales` and
    codebooks train, by steps relative to their own size. Beside a number that trains there are its
    gradient, AdamW's two and what to return to on an error; and where it is stored in less than
    float32, a copy and a gradient in that.
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
    descent = Descent(model, learning_rate, scales)
    told = progress or (lambda stage, fraction: None)
    pairs = list(_pairs(model, original)) if perturbation else []
    healed, begun = Healed(), clock()

    def fraction() -> float:
        if steps is not None:
            return healed.steps / steps
        assert minutes is not None
        now = clock()
        coming = (now - begun) / healed.steps if healed.steps else 0.0
        return (now - started + coming) / (60 * minutes)

    with (
        descent.alone(model),
        _quiet(model),
        untouched(original),
        block_features(model) as mine,
        block_features(original) as theirs,
    ):
        for batch in _shuffled(held, seed, device_of(model)):
            done = fraction()
            if done >= 1:
                break
            told("healing", done)
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
            loss.backward()
            descent.step(done)
            healed.losses.append(float(loss.detach()))
    healed.seconds = clock() - started
    return healed


def _pairs(model: nn.Module, original: nn.Module) -> Iterator[tuple[Operator, Tensor]]:
    """Every rewritten operator with the weight that it stands for."""
    for site in survey(model)[0]:
        if is_rewritten(model, site):
            yield read(model, site), read(original, site).dense().detach()


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
