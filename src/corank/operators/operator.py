"""What every operator is: a linear map with structure, whose leaves are parameters and buffers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .product import Product
    from .scaled import Scaled
    from .sum import Sum


class Operator(nn.Module, ABC):
    """A linear map: `op(x)` is `x @ W.T` for a W of shape (out, in) that need not be stored.

    Leaves are parameters (floating point, frozen unless made trainable) and buffers (codes,
    indices, masks), so `state_dict`, `.to`, DDP and FSDP need no help. Every argument of a
    subclass's constructor is kept as an attribute of the same name, as a tensor, an operator, a
    tuple of operators or a JSON value; `describe` and `build` rely on it.
    """

    shape: tuple[int, int]

    #: Whether it is one matrix; not so where the map depends on its input, as in `Routed`.
    linear: ClassVar[bool] = True

    #: Why no file holds it, and what to do instead; None for all that files may hold.
    not_stored: ClassVar[str | None] = None

    #: How many numbers a leaf holds, where it is not its numel: packed codes, bookkeeping (0).
    numbers_held: Mapping[str, int] = MappingProxyType({})

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        """Apply the map to the last axis of `x`, of shape (..., in)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix W, of shape (out, in)."""

    @abstractmethod
    def flops(self, tokens: int) -> int:
        """Floating point operations of `op(x)` for `tokens` rows of x: a multiply-add is two."""

    @final
    def numel(self) -> int:
        """Stored numbers; a leaf that is used twice counts once, bookkeeping not at all."""
        return sum(numbers for _, numbers in self._stored())

    @final
    def bytes(self) -> int:
        """Bytes of all that is stored: values, codes, scales, indices and masks."""
        return sum(t.numel() * t.element_size() for t, _ in self._stored())

    def _stored(self) -> Iterator[tuple[Tensor, int]]:
        seen: set[int] = set()
        for module in self.modules():
            numbers = module.numbers_held if isinstance(module, Operator) else {}
            for name, leaf in (*module._parameters.items(), *module._buffers.items()):
                transient = name in module._non_persistent_buffers_set
                if leaf is None or transient or id(leaf) in seen:
                    continue
                seen.add(id(leaf))
                yield leaf, numbers.get(name, leaf.numel())

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (tuple, bool, int, float, str)):
            object.__setattr__(self, name, value)  # nn.Module would look for what to register
        else:
            super().__setattr__(name, value)

    @property
    def _referent(self) -> Operator | None:
        """The operator that one without leaves refers to."""
        return None

    @property
    @final
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating point leaf, of one not stored if there is no other."""
        for own in self._parameters.values():
            if own is not None:
                return own.dtype
        for leaf, _ in self._stored():
            if leaf.is_floating_point():
                return leaf.dtype
        if self._referent is not None:
            return self._referent.dtype
        drawn = (b.dtype for b in self.buffers() if b.is_floating_point())
        return next(drawn, torch.get_default_dtype())

    @property
    @final
    def device(self) -> torch.device:
        """The device of the first leaf, of one that is not stored if there is no other."""
        if self._referent is not None:
            return self._referent.device
        leaves = chain((leaf for leaf, _ in self._stored()), self.buffers())
        return next((leaf.device for leaf in leaves), torch.device("cpu"))

    @final
    def __add__(self, other: Operator) -> Sum:
        from .sum import Sum

        return Sum(self, other)

    @final
    def __matmul__(self, other: Operator) -> Product:
        from .product import Product

        return Product(self, other)

    @final
    def __rmul__(self, scale: float) -> Scaled:
        from .scaled import Scaled

        return Scaled(self, float(scale))

    def extra_repr(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}"


def leaf(tensor: Tensor) -> nn.Parameter:
    """A floating point tensor as a frozen parameter, laid out as a file holds it, so that a reload
    computes the same bits; a parameter is passed through, so shared."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def parts(operators: Sequence[Operator]) -> Sequence[Operator]:
    """Operators as a ModuleList, typed as what it holds."""
    return cast("Sequence[Operator]", nn.ModuleList(operators))


def is_linear(op: Operator) -> bool:
    """Whether `op` is one matrix, in all its parts."""
    return all(part.linear for part in op.modules() if isinstance(part, Operator))


def trainable(op: Operator) -> Operator:
    """`op` with every floating point leaf requiring grad."""
    return op.requires_grad_(True)


def require_matrix(tensor: Tensor, what: str) -> None:
    """Refuse anything but a floating point matrix."""
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{what} must be a floating point matrix, got {_kind(tensor)}")


def require_vector(tensor: Tensor, what: str, length: int | None = None) -> None:
    """Refuse anything but a floating point vector, of `length` numbers where given."""
    right = tensor.ndim == 1 and length in (None, tensor.shape[0])
    if not right or not tensor.is_floating_point():
        wanted = "" if length is None else f" of {length} numbers"
        raise ValueError(f"{what} must be a floating point vector{wanted}, got {_kind(tensor)}")


def require_index(tensor: Tensor, what: str) -> None:
    """Refuse anything but an int32 or int64 vector."""
    if tensor.ndim != 1 or tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{what} must be an int32 or int64 vector, got {_kind(tensor)}")


def require_operators(operators: Sequence[object], what: str) -> None:
    """Refuse an empty list, and anything that is not an operator."""
    if not operators:
        raise ValueError(f"{what} needs at least one operator")
    for op in operators:
        if not isinstance(op, Operator):
            remedy = "wrap a tensor in Dense"
            raise TypeError(f"{what} is made of operators, got {type(op).__name__}: {remedy}")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
