"""Running somebody's model without leaving a trace on it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import DataError


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without caches inside; on leaving, also by an exception, all is as before.

    Restored: training flags, requires_grad flags, the configuration's use_cache, and torch's
    random number generators. Inside, no parameter requires grad, so `.grad` is never touched.
    """
    training = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    configs = [
        (config, config.use_cache)
        for config in {id(c): c for c in _configs(model)}.values()
        if isinstance(getattr(config, "use_cache", None), bool)
    ]
    devices = {p.device.index for p, _ in grads if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(d for d in devices if d is not None)):
        try:
            model.eval()
            for parameter, _ in grads:
                parameter.requires_grad_(False)
            for config, _ in configs:
                config.use_cache = False
            yield
        finally:
            for module, flag in training:
                module.training = flag
            for parameter, flag in grads:
                parameter.requires_grad_(flag)
            for config, flag in configs:
                config.use_cache = flag


def call(model: nn.Module, batch: Any) -> Any:
    """The model's output for one batch.

    A tuple may end in labels, which only a loss reads: the longest start of it that the model's
    forward has arguments for is what the model is called with.

    Raises: DataError if the model's forward does not accept such a batch.
    """
    signature = inspect.signature(model.forward)
    spread: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    if isinstance(batch, Mapping):
        spread.append(((), dict(batch)))
    elif isinstance(batch, (tuple, list)):
        spread += [(tuple(batch[:count]), {}) for count in range(len(batch), 0, -1)]
    spread.append(((batch,), {}))
    for args, kwargs in spread:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        return model(*args, **kwargs)
    shape = sorted(batch) if isinstance(batch, Mapping) else f"{type(batch).__name__}"
    raise DataError(
        f"{type(model).__name__}.forward{signature} cannot be called with a batch of {shape}: "
        "give batches that match its arguments"
    )


def check_vocabulary(model: nn.Module, batch: Any, index: int) -> None:
    """Refuse token ids beyond the model's vocabulary.

    Raises: DataError, for the usual cause: another model's tokenizer.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        return
    getter = getattr(model, "get_input_embeddings", None)
    try:
        table = getter() if getter is not None else None
    except NotImplementedError:
        return
    weight = getattr(table, "weight", None)
    if weight is None or batch["input_ids"].numel() == 0:
        return
    largest, smallest = int(batch["input_ids"].max()), int(batch["input_ids"].min())
    if largest >= weight.shape[0] or smallest < 0:
        wrong = largest if largest >= weight.shape[0] else smallest
        raise DataError(
            f"batch {index} holds token id {wrong}, but the model's vocabulary has "
            f"{weight.shape[0]} entries: the tokenizer does not fit, use the model's own"
        )


def device_of(model: nn.Module) -> torch.device:
    """Where the model's inputs go: the device of its first parameter.

    Raises: DataError for a model on the meta device, which has no values to run with.
    """
    first = next(iter(model.parameters()), None)
    device = torch.device("cpu") if first is None else first.device
    if device.type == "meta":
        raise DataError("the model is on the meta device and cannot be run: load its weights first")
    return device


def _configs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            yield config
