"""torch's kernels for matrices with two numbers in every four, where the device has them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from .operator import Operator

#: The kernels' own layout of each matrix that met them, and what it was made of.
_LAYOUTS: WeakKeyDictionary[Operator, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


def kernel_linear(op: Operator, values: Tensor, x: Tensor) -> Tensor | None:
    """`x @ W.T` by cuSPARSELt, or None where it does not serve this device, dtype or shape.

    op: of two `values` in every four neighbours of a row.

    The layout that it reads is made at the first product and kept beside the values, as large as
    they are with their places.
    """
    if not _is_served(op, values, x):
        return None
    made_of = (values.data_ptr(), values._version)
    found = _LAYOUTS.get(op)
    if found is None or found[0] != made_of:
        found = (made_of, torch.sparse.to_sparse_semi_structured(op.dense()))
        _LAYOUTS[op] = found
    return F.linear(x, found[1])


def _is_served(op: Operator, values: Tensor, x: Tensor) -> bool:
    return (
        x.is_cuda
        and x.dtype == values.dtype
        and x.dtype in (torch.float16, torch.bfloat16)
        and op.shape[0] % 32 == 0
        and op.shape[1] % 64 == 0
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.cusparselt.is_available()
    )
