"""How far a model's outputs are from the original's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..calibration import Batches
from ..calibration.data import to_device
from ..calibration.outputs import main_output
from ..calibration.running import call, device_of, untouched
from ..healing.losses import output_loss, token_mask


class Yardstick:
    """Mean over batches of KL(original || model) of logits, else the relative squared error.

    original: is run again for every measurement; or, with `keep`, once, and its outputs are held.
    """

    def __init__(self, original: nn.Module, held: Batches, keep: bool = False) -> None:
        self.original, self.held = original, held
        self.kept = [self._wanted(batch) for batch in held] if keep else None

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """The distance of `model`, which is left as it is. ValueError where it is no number."""
        total = 0.0
        for i, batch in enumerate(self.held):
            wanted = self._wanted(batch) if self.kept is None else self.kept[i]
            with untouched(model):
                found = call(model, to_device(batch, device_of(model)))
            loss = output_loss(
                main_output(found), wanted, token_mask(batch), hasattr(found, "logits")
            )
            total += float(loss) / len(self.held)
        if not math.isfinite(total):
            raise ValueError("the model's outputs are not finite on the tuning data")
        return total

    @torch.no_grad()
    def _wanted(self, batch: object) -> Tensor:
        with untouched(self.original):
            return main_output(call(self.original, to_device(batch, device_of(self.original))))
