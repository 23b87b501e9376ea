"""The module that a layer replaced, less its weights: what a plain model is rebuilt from."""

from __future__ import annotations

import copy
from typing import TypeVar, final

from torch import Tensor, nn

L = TypeVar("L", bound=type[nn.Module])


@final
class Origin:
    """A replaced module with its parameters taken out; not a submodule, so it holds no state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.copy(module)
        self.module._parameters = dict.fromkeys(module._parameters)
        self.module._buffers = dict(module._buffers)
        #: Whether the weights that were taken out required grad.
        self.trains = any(p.requires_grad for p in module._parameters.values() if p is not None)

    @property
    def type(self) -> type[nn.Module]:
        return type(self.module)

    def restore(
        self, parameters: dict[str, nn.Parameter | None], buffers: dict[str, Tensor | None]
    ) -> nn.Module:
        """The module again, over these parameters and buffers."""
        module = copy.copy(self.module)
        module._parameters = dict(parameters)
        module._buffers = dict(self.module._buffers) | buffers
        return module


def initialised(layer: L) -> L:
    """Class decorator: keep transformers' weight initialisation away from a layer."""
    layer._is_hf_initialized = True  # type: ignore[attr-defined]
    return layer


def carry(old: nn.Module, new: nn.Module) -> nn.Module:
    """Give `new` the training mode and the hooks of `old`, whose handles go on working."""
    new.training = old.training
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    return new


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
