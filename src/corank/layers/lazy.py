"""A weight that is multiplied out only where a value of it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..operators.operator import Operator


def dense_of(op: Operator) -> Tensor:
    """`op.dense()` in its own dtype, whatever autocast says, as a parameter would be."""
    kind = op.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return op.dense()
    with torch.autocast(kind, enabled=False):
        return op.dense()


def lazy_dense(op: Operator, arrange: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """`arrange(op.dense())`, multiplied out at first use; its dtype and device cost nothing.

    Modelling code asks a layer's `.weight.dtype` in every forward. Under torch.compile the plain
    tensor is returned: the compiler drops what is not used.
    """
    if torch.compiler.is_compiling():
        return arrange(dense_of(op))
    return _Lazy(lambda: arrange(dense_of(op)), shape, op.dtype, op.device)


class _Lazy(Tensor):
    _make: Callable[[], Tensor]
    _is_hf_initialized = True  # transformers then leaves it as it was loaded

    @staticmethod
    def __new__(
        cls,
        make: Callable[[], Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> _Lazy:
        self: _Lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        self._make = make
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*tree_map(_made, args), **tree_map(_made, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map(_made, args), **tree_map(_made, kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._make().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self._make().detach().clone()


def _made(value: Any) -> Any:
    return value._make() if isinstance(value, _Lazy) else value


_GETTERS = ("shape", "dtype", "device", "layout", "ndim", "is_meta", "is_cuda", "is_sparse")
_METHODS = ("size", "dim", "numel", "element_size", "is_floating_point", "is_complex", "__len__")
_METADATA = {getattr(Tensor, name).__get__ for name in _GETTERS}
_METADATA |= {getattr(Tensor, name) for name in _METHODS}
