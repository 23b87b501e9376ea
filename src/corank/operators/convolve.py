"""Circular convolution through the Fourier transform, as one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def convolve(x: Tensor, kernel: Tensor, length: int) -> Tensor:  # (..., d) -> (..., length)
    """sum over j of kernel[(i - j) mod length] x[j], both padded with zeros; in the dtype of x."""
    return _through(x, kernel, length, False)


def correlate(x: Tensor, kernel: Tensor, length: int) -> Tensor:
    """sum over i of kernel[(i - j) mod length] x[i]: the transpose of `convolve`."""
    return _through(x, kernel, length, True)


def convolve_flops(tokens: int, length: int) -> int:
    """Floating point operations of either, 5/2 n log2 n for the transform of n real numbers."""
    transform = 5 * length * max(1, length.bit_length() - 1) // 2
    return (2 * tokens + 1) * transform + 6 * tokens * (length // 2 + 1)


def _through(x: Tensor, kernel: Tensor, length: int, flipped: bool) -> Tensor:
    # There is no transform of half precision numbers on every device.
    dtype = torch.promote_types(x.dtype, torch.float32)
    product: Tensor = _convolve(x.to(dtype), kernel.to(dtype), length, flipped)
    return product.to(x.dtype)


@torch.library.custom_op("corank::convolve", mutates_args=())
def _convolve(x: Tensor, kernel: Tensor, length: int, flipped: bool) -> Tensor:
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], length)
    other = torch.fft.rfft(kernel, n=length)
    product = torch.fft.rfft(x, n=length) * (other.conj() if flipped else other)
    return torch.fft.irfft(product, n=length)


@torch.library.custom_op("corank::convolve_sample", mutates_args=())
def _sample(grad: Tensor, x: Tensor, size: int, flipped: bool) -> Tensor:
    """The gradient of a kernel of `size` numbers, summed over all rows."""
    if x.numel() == 0:
        return x.new_zeros(size)
    length = grad.shape[-1]
    g = torch.fft.rfft(grad.reshape(-1, length))
    z = torch.fft.rfft(x.reshape(-1, x.shape[-1]), n=length)
    met = torch.linalg.vecdot(g, z, dim=0) if flipped else torch.linalg.vecdot(z, g, dim=0)
    return torch.fft.irfft(met, n=length)[:size].clone()


@_convolve.register_fake
def _(x: Tensor, kernel: Tensor, length: int, flipped: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], length)


@_sample.register_fake
def _(grad: Tensor, x: Tensor, size: int, flipped: bool) -> Tensor:
    return x.new_empty(size)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, ctx.length, ctx.flipped = inputs
    ctx.width = x.shape[-1]
    ctx.save_for_backward(x if kernel.requires_grad else None, kernel)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, kernel = ctx.saved_tensors
    to_x = to_kernel = None
    if ctx.needs_input_grad[0]:
        to_x = _convolve(grad, kernel, ctx.length, not ctx.flipped)[..., : ctx.width]
    if ctx.needs_input_grad[1]:
        to_kernel = _sample(grad, x, kernel.shape[0], ctx.flipped)
    return to_x, to_kernel, None, None


_convolve.register_autograd(_backward, setup_context=_keep)
