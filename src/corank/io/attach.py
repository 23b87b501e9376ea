"""Keeping transformers informed of what a model in memory holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..operators import Foreign
from .skeletons import layers


def attach(model: nn.Module) -> None:
    """Let `save_pretrained`, and so the Trainer, write the operators that are in `model` now.

    Every transformers model in `model` that holds operators gets our quantiser and configuration;
    one that holds none any more becomes plain again. Other modules are left alone, and models with
    weights in another library's format, of which only the adapters are ours to write. To be called
    whenever operators come or go.
    """
    if "transformers" not in sys.modules:
        return
    from .quantizer import CorankConfig, CorankQuantizer, skeleton_of

    for part in _outermost(model):
        quantizer: Any = getattr(part, "hf_quantizer", None)
        attached = isinstance(quantizer, CorankQuantizer)
        if next(layers(part), None) is None or holds_foreign(part):
            detach(part)
        elif not attached:
            config = CorankConfig(**skeleton_of(part))
            part.config.quantization_config, part.hf_quantizer = config, CorankQuantizer(config)
            part.hf_quantizer.conversions = getattr(part, "_weight_conversions", None)
            part._weight_conversions = []  # of names that have no place for factors
        else:
            quantizer.quantization_config.skeleton = skeleton_of(part)


def holds_foreign(model: nn.Module) -> bool:
    """Whether an operator stands for a weight in another library's format."""
    return any(isinstance(module, Foreign) for module in model.modules())


def detach(part: Any) -> None:
    """Take our quantiser and configuration from a transformers model that has them."""
    from .quantizer import CorankQuantizer

    quantizer: Any = getattr(part, "hf_quantizer", None)
    if not isinstance(quantizer, CorankQuantizer):
        return
    if quantizer.conversions is None:
        del part._weight_conversions
    else:
        part._weight_conversions = quantizer.conversions
    quantizer.remove_quantization_config(part)


def _outermost(model: nn.Module) -> Iterator[Any]:
    from transformers import PreTrainedModel

    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(path.startswith(p) for p in inside):
            inside.append(f"{path}." if path else "")
            yield module
