"""How fast models are beside each other, and what they take."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.data import first_tensor, to_device
from ..calibration.running import call, device_of, untouched

#: Seconds after which one round says enough.
_LONG = 5.0


@torch.no_grad()
def measure_speed(
    models: Mapping[str, nn.Module], batch: Any, repeats: int = 7
) -> list[dict[str, Any]]:
    """Rows {variant, bytes, tokens_per_second, relative} of forward passes over one batch.

    Every round runs each model once, so that a slow spell of the machine hits all of them; a
    row's speed is its median round's, after one round that does not count; a model that takes
    more than 5 seconds for that one is not run again. `relative` is the speed
    over the first model's. Tokens are those that are no padding; for inputs without tokens,
    samples.

    Raises ValueError for no models or less than one repeat.
    """
    if not models or repeats < 1:
        raise ValueError("measuring speed takes at least one model and one repeat")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    inputs = {name: to_device(batch, device_of(model)) for name, model in models.items()}
    for turn in range(repeats + 1):
        for name, model in models.items():
            if turn and seconds[name][0] > _LONG:
                continue
            with untouched(model):
                _wait(model)
                started = perf_counter()
                call(model, inputs[name])
                _wait(model)
                spent = perf_counter() - started
            seconds[name].append(spent)
    tokens = count_tokens(batch)
    typical = {name: median(rounds[1:] or rounds) for name, rounds in seconds.items()}
    first = next(iter(typical.values()))
    return [
        {
            "variant": name,
            "bytes": count_bytes(model),
            "tokens_per_second": tokens / typical[name],
            "relative": first / typical[name],
        }
        for name, model in models.items()
    ]


def count_tokens(batch: Any) -> int:
    """The tokens of a batch that are no padding; its samples where it has no tokens."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor):
        return int(mask.sum())
    tensor = first_tensor(batch)
    return tensor.numel() if not tensor.is_floating_point() else int(tensor.shape[0])


def count_bytes(model: nn.Module) -> int:
    """What the parameters and buffers take in memory, shared ones once, packed ones as packed."""
    stored = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(_tensor_bytes(tensor) for tensor in stored.values())


def _tensor_bytes(tensor: Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's weights are tensors made of tensors
        names = tensor.__tensor_flatten__()[0]
        parts = [getattr(tensor, name) for name in names]
        return sum(_tensor_bytes(part) for part in parts if part is not None)
    return tensor.numel() * tensor.element_size()


def _wait(model: nn.Module) -> None:
    if device_of(model).type == "cuda":
        torch.cuda.synchronize()
