"""The same model with its weights quantised by torchao, to be compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from .quiet import quiet

#: Weights to a scale, the most first; the first that divides every layer's input is taken.
_GROUP_SIZES = (128, 64, 32)


def quantised_variants(
    model: nn.Module, names: Collection[str] | None = None
) -> tuple[dict[str, nn.Module], list[str]]:
    """Copies of the model under torchao's int8 and int4 weight-only quantisation, and notes.

    names: the linear layers to quantise, such as the sites that a compression targeted; None
        takes every `nn.Linear` whose weight no other module uses.

    A variant that cannot be built here is left out; a note says so with the reason. Weight-only:
    activations keep the model's dtype. Embeddings and convolutions keep theirs too.
    """
    try:
        with quiet():
            import torchao.quantization  # noqa: F401
    except ImportError as error:
        return {}, [f"not compared with torchao int8 and int4: {error}"]
    layers, notes = _choose_layers(model, names)
    variants: dict[str, nn.Module] = {}
    for variant, configure in (("int8", _int8), ("int4", _int4)):
        try:
            variants[variant] = _quantise(model, layers, configure)
        except Exception as error:  # whatever torchao lacks here becomes the note's reason
            reason = str(error).strip() or type(error).__name__
            notes.append(f"not compared with torchao {variant} weight-only: {reason}")
    first = next(iter(layers.values()), None)
    if "int4" in variants and first is not None and _is_slow(first.weight):
        notes.append(
            "torchao's int4 runs a slow float32 kernel on CPUs; in bfloat16 it is much faster"
        )
    return variants, notes


@torch.no_grad()
def dequantised(variant: nn.Module) -> nn.Module:
    """A copy whose quantised layers are plain ones over the matrices that they multiply by.

    It computes the same up to rounding, where a variant's own kernel can be many times slower.
    """
    names = [
        name for name, m in variant.named_modules()
        if isinstance(m, nn.Linear) and type(m.weight) is not nn.Parameter
    ]  # fmt: skip
    plain = copy.deepcopy(variant)
    for name in names:
        layer = variant.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        dtype = layer.weight.dtype
        identity = torch.eye(layer.in_features, dtype=dtype, device=layer.weight.device)
        product = nn.functional.linear(identity, layer.weight)  # (in, out)
        other = nn.Linear(layer.in_features, layer.out_features, device="meta", dtype=dtype)
        other.weight = nn.Parameter(product.T.contiguous(), requires_grad=False)
        other.bias = layer.bias
        plain.set_submodule(name, other.train(layer.training))
    return plain


def _choose_layers(
    model: nn.Module, names: Collection[str] | None
) -> tuple[dict[str, nn.Linear], list[str]]:
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    chosen, left = {}, []
    for name, module in model.named_modules():
        if names is not None and name not in names:
            continue
        if type(module) is nn.Linear and owners[id(module.weight)] == 1:
            chosen[name] = module
        elif names is not None:
            left.append(name)
    notes = []
    if left:
        notes.append(f"torchao left {len(left)} targets dense, no plain linear layers: {left[0]}")
    return chosen, notes


def _quantise(
    model: nn.Module, layers: dict[str, nn.Linear], configure: Callable[..., Any]
) -> nn.Module:
    if not layers:
        raise ValueError("the model has no linear layers of its own to quantise")
    with quiet():
        from torchao.quantization import quantize_

        config = configure(list(layers.values()))
        other = copy.deepcopy(model).requires_grad_(False)
        quantize_(other, config, filter_fn=lambda module, name: name in layers)
    unchanged = [name for name in layers if type(other.get_submodule(name).weight) is nn.Parameter]
    if unchanged:
        raise ValueError(f"torchao left {unchanged[0]} as it was")
    return other


def _is_slow(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.float32


def _int8(layers: list[nn.Linear]) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(version=2, set_inductor_config=False)


def _int4(layers: list[nn.Linear]) -> Any:
    size = next(
        (g for g in _GROUP_SIZES if all(layer.in_features % g == 0 for layer in layers)), None
    )
    if size is None:
        raise ValueError(f"no group of {_GROUP_SIZES} weights divides every layer's input")
    if layers[0].weight.device.type == "cuda":
        if layers[0].weight.dtype is not torch.bfloat16:
            raise ValueError(f"its CUDA kernel takes bfloat16, not {layers[0].weight.dtype}")
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(
            group_size=size, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    # the public configuration has no packing for CPUs; the prototype one is torchao's own
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=size, set_inductor_config=False)
