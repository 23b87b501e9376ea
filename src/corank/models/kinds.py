"""Which modules hold a weight corank can handle, and why the others are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..layers.convolution import Convolution
from ..layers.embedding import Embedding
from ..layers.experts import Experts
from ..layers.linear import Linear
from .foreign import is_foreign

#: Parameters of fused experts, in the order a token meets them.
PROJECTIONS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Refused:
    """A weight that is not a site, and why."""

    name: str
    reason: str


class RefusedModule(Exception):
    """Raised by `kind_of` with the reason; `whole`: so are the modules inside it."""

    def __init__(self, reason: str, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole


def kind_of(module: nn.Module, foreign: bool = False) -> str | None:
    """The kind of site a module is ("experts" for fused ones), or None if it holds no weight.

    foreign: take a quantised layer of another library's as "linear" instead of refusing it.
    Raises RefusedModule with the reason for a module whose weight cannot be replaced.
    """
    for layer, kind in _LAYERS:
        if type(module) is layer:
            transposed = isinstance(module, Linear) and module.transposed
            return "conv1d_transposed" if transposed else kind
    if isinstance(module, nn.MultiheadAttention):
        raise RefusedModule(
            "nn.MultiheadAttention passes its weights to one fused function and never calls its "
            "projections; write the attention with separate linear layers",
            whole=True,
        )
    if foreign and is_foreign(module):
        return "linear"
    plain = _plain(module)
    if plain is not None:
        _require_plain_weight(module)
    return plain


Layer: TypeAlias = Linear | Convolution | Embedding | Experts


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Whether a module is one of corank's layers."""
    return any(type(module) is layer for layer, _ in _LAYERS)


def _plain(module: nn.Module) -> str | None:
    if parametrize.is_parametrized(module):
        raise RefusedModule(
            "its weight is parametrised (torch.nn.utils.parametrize); "
            "call remove_parametrizations(module, 'weight') first",
            whole=True,
        )
    name = type(module).__name__
    if type(module) is nn.Linear:
        return "linear"
    if name == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx"):
        return "conv1d_transposed"
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        raise RefusedModule("a transposed convolution is not supported")
    if isinstance(module, nn.Conv3d):
        raise RefusedModule("a three-dimensional convolution is not supported")
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _convolution(module)
    if isinstance(module, nn.Embedding):
        return _embedding(module)
    if _is_experts(module):
        return _experts(module)
    _refuse_unknown(module)
    return None


def _convolution(module: nn.Conv1d | nn.Conv2d) -> str:
    if type(module) not in (nn.Conv1d, nn.Conv2d):
        raise RefusedModule(f"{type(module).__name__} is a convolution with a forward of its own")
    if module.groups > 1:
        raise RefusedModule(f"a convolution in {module.groups} groups is not one matrix")
    return "conv"


def _embedding(module: nn.Embedding) -> str:
    scaled = type(module).__name__.endswith("ScaledWordEmbedding")
    if type(module) is not nn.Embedding and not (scaled and "embed_scale" in module._buffers):
        raise RefusedModule(f"{type(module).__name__} is an embedding with a forward of its own")
    if module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
        raise RefusedModule("an embedding with max_norm, sparse or scale_grad_by_freq")
    return "embedding"


def _is_experts(module: nn.Module) -> bool:
    tensors = [module._parameters.get(name) for name in PROJECTIONS]
    return all(t is not None and t.ndim == 3 for t in tensors)


def _experts(module: nn.Module) -> str:
    expected = {"has_gate": True, "has_bias": False, "is_transposed": False}
    expected |= {"is_concatenated": True, "_is_expert_parallel": False}
    expected |= {"has_post_expert_norm": False}
    for name, value in expected.items():
        if getattr(module, name, value) != value:
            raise RefusedModule(f"fused experts with {name}={getattr(module, name)}")
    gate = getattr(type(module), "_apply_gate", None)
    if gate is not None and gate.__name__ != "_default_apply_gate":
        raise RefusedModule("fused experts with a gate of their own")
    gate_up, down = (module._parameters[name] for name in PROJECTIONS)
    assert gate_up is not None
    assert down is not None
    count, width, hidden = gate_up.shape
    if down.shape != (count, hidden, width // 2) or not hasattr(module, "act_fn"):
        raise RefusedModule(
            f"experts of shapes {tuple(gate_up.shape)} and {tuple(down.shape)} are not the "
            "(experts, 2 * inner, hidden) and (experts, hidden, inner) of gated experts"
        )
    return "experts"


def _refuse_unknown(module: nn.Module) -> None:
    name = type(module).__name__
    has_features = hasattr(module, "in_features") and hasattr(module, "out_features")
    wraps = any(isinstance(child, (nn.Linear, Linear)) for child in module.children())
    if isinstance(module, nn.Linear) or (has_features and not wraps):
        raise RefusedModule(
            f"{name} is not a plain nn.Linear (quantised, or with a forward of its own); "
            "load the model in floating point",
            whole=True,
        )
    matrices = [n for n, t in module._parameters.items() if t is not None and _is_matrix(t)]
    if matrices and "router" in name.lower():
        raise RefusedModule(f"{name} routes tokens with its {', '.join(matrices)} by itself")
    if matrices:
        raise RefusedModule(f"{name} uses its {', '.join(matrices)} in a way corank does not know")


def _is_matrix(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) > 1


def _require_plain_weight(module: nn.Module) -> None:
    for name in PROJECTIONS if _is_experts(module) else ("weight",):
        weight = module._parameters.get(name)
        if weight is None:
            raise RefusedModule(
                f"its {name} is not a parameter (weight norm, spectral norm or pruning); "
                "remove that first"
            )
        if not weight.is_floating_point():
            raise RefusedModule(f"its weight is {weight.dtype}; load it in floating point")
        if type(weight.data) is not Tensor and not _is_fake(weight.data):
            raise RefusedModule(
                f"its weight is a {type(weight.data).__name__}; "
                "compress before quantising or sharding"
            )


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)


_LAYERS: tuple[tuple[type[nn.Module], str], ...] = (
    (Linear, "linear"),
    (Convolution, "conv"),
    (Embedding, "embedding"),
    (Experts, "experts"),
)
