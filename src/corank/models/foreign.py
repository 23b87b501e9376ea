"""Linear modules in another library's format: quantised, and known by their forward alone."""

from __future__ import annotations

from torch import nn

from ..operators.foreign import knows_its_values


def is_foreign(module: nn.Module) -> bool:
    """Whether a module is a linear layer over a quantised weight of another library's.

    So are an nn.Linear whose weight is a tensor subclass that can dequantise itself (torchao), and
    a module with `in_features`, `out_features` and packed, integer weights (bitsandbytes, GPTQ
    ...), whose forward is then taken to be linear but for its bias.
    """
    if type(module) is nn.Linear:
        weight = module._parameters.get("weight")
        return weight is not None and knows_its_values(weight)
    widths = [getattr(module, name, None) for name in ("in_features", "out_features")]
    if not all(isinstance(width, int) for width in widths) or any(True for _ in module.children()):
        return False
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.ndim]
    return any(not t.is_floating_point() and t.numel() > 1 for t in tensors)
