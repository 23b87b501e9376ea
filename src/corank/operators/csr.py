"""The product with a sparse matrix in compressed rows, as one operation for torch.compile."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("corank::csr_linear", mutates_args=())
def _csr_linear(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    rows = x.reshape(-1, into)
    product = _compressed(values, index, out, into) @ rows.mT  # (out, tokens)
    return product.mT.contiguous().view(*x.shape[:-1], out)


@torch.library.custom_op("corank::csr_adjoint", mutates_args=())
def _csr_adjoint(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    rows = x.reshape(-1, out).contiguous()
    product = rows @ _compressed(values, index, out, into)
    return product.contiguous().view(*x.shape[:-1], into)


@torch.library.custom_op("corank::csr_sample", mutates_args=())
def _csr_sample(left: Tensor, right: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    """(left.T @ right).flatten()[index], for left (tokens, out) and right (tokens, in)."""
    pattern = _compressed(right.new_zeros(index.shape[0]), index, out, into)
    columns, rows = left.reshape(-1, out).mT.contiguous(), right.reshape(-1, into).contiguous()
    return torch.sparse.sampled_addmm(pattern, columns, rows, beta=0.0).values().clone()


def csr_linear(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    """`x @ W.T` for x (..., in) and W (out, in) with `values` at ascending flat places `index`."""
    product: Tensor = _csr_linear(x, values, index, out, into)
    return product


def csr_adjoint(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    """`x @ W` for x (..., out), W as in `csr_linear`."""
    product: Tensor = _csr_adjoint(x, values, index, out, into)
    return product


def _compressed(values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    # The last start may not fit in int32, so the search is in int64.
    edges = torch.arange(out + 1, device=index.device, dtype=torch.int64) * into
    starts = torch.searchsorted(index.long(), edges)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)", UserWarning)
        return torch.sparse_csr_tensor(
            starts.to(index.dtype), index % into, values, (out, into), check_invariants=False
        )


@_csr_linear.register_fake
def _(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


@_csr_adjoint.register_fake
def _(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], into)


@_csr_sample.register_fake
def _(left: Tensor, right: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    return right.new_empty(index.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, ctx.out, ctx.into = inputs
    # x serves the values' gradient only, as in any frozen linear layer.
    ctx.save_for_backward(x if values.requires_grad else None, values, index)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, index = ctx.saved_tensors
    to_x = to_values = None
    if ctx.needs_input_grad[0]:
        to_x = _csr_adjoint(grad, values, index, ctx.out, ctx.into)
    if ctx.needs_input_grad[1]:
        to_values = _csr_sample(grad, x, index, ctx.out, ctx.into)
    return to_x, to_values, None, None, None


def _adjoint_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, index = ctx.saved_tensors
    to_x = to_values = None
    if ctx.needs_input_grad[0]:
        to_x = _csr_linear(grad, values, index, ctx.out, ctx.into)
    if ctx.needs_input_grad[1]:
        to_values = _csr_sample(x, grad, index, ctx.out, ctx.into)
    return to_x, to_values, None, None, None


_csr_linear.register_autograd(_linear_backward, setup_context=_keep)
_csr_adjoint.register_autograd(_adjoint_backward, setup_context=_keep)
