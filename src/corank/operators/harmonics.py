"""The product with a matrix of few two-dimensional frequencies, as one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def harmonics(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    """`x @ W.T` for x (..., in) and W = Re ifft2(S), S (out, in) with `values` at flat `index`.

    W x is a transform of x, a sparse product between half spectra, and a transform back, so the
    matrix is not made; its transpose is such a product too. Kept for the backward pass: x.
    """
    product: Tensor = _harmonics(x, values, index, out, into)
    return product


def transposed(index: Tensor, out: int, into: int) -> Tensor:
    """The flat places of S.T."""
    return index % into * out + index // into


@torch.library.custom_op("corank::harmonics", mutates_args=())
def _harmonics(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], out)
    product = _synthesise(_spectrum(x.reshape(-1, into)), values, index, out, into)
    return product.view(*x.shape[:-1], out)


@torch.library.custom_op("corank::harmonics_backward", mutates_args=())
def _gradients(
    grad: Tensor, x: Tensor | None, values: Tensor, index: Tensor, out: int, into: int, to_x: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x, if `to_x`, and of `values`, if x is given; else an empty tensor."""
    nothing, lead = grad.new_empty(0), grad.shape[:-1]
    if grad.numel() == 0:
        return grad.new_empty(*lead, into) if to_x else nothing, torch.zeros_like(values)
    g = _spectrum(grad.reshape(-1, out))
    back = transposed(index, out, into)
    for_x = _synthesise(g, values, back, into, out).view(*lead, into) if to_x else nothing
    if x is None:
        return for_x, nothing
    left, right, sign = _halves(index, out, into)
    z = _spectrum(x.reshape(-1, into))
    real, imaginary = (
        torch.linalg.vecdot(g.index_select(0, 2 * left + i), z.index_select(0, 2 * right + i))
        for i in (0, 1)
    )
    return for_x, (real + sign * imaginary) / (out * into)


def _spectrum(rows: Tensor) -> Tensor:  # (tokens, n) -> (2 * half, tokens)
    return torch.view_as_real(torch.fft.rfft(rows)).flatten(1).mT.contiguous()


def _synthesise(spectrum: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    """(tokens, out) from the `_spectrum` of (tokens, in)."""
    left, right, sign = _halves(index, out, into)
    # The transform back counts what lies between its two ends twice.
    ends = (left == 0) | (2 * left == out)
    weights = values / torch.where(ends, into, 2 * into)
    # Outputs are bags of weighted rows, in which real and imaginary parts alternate.
    bags = torch.cat((2 * left, 2 * left + 1))
    order = bags.argsort()
    half = out // 2 + 1
    both = F.embedding_bag(
        torch.cat((2 * right, 2 * right + 1))[order],
        spectrum,
        torch.searchsorted(bags[order], torch.arange(2 * half, device=index.device)),
        mode="sum",
        per_sample_weights=torch.cat((weights, weights * sign))[order],
    )
    found = torch.view_as_complex(both.mT.contiguous().unflatten(1, (half, 2)))
    return torch.fft.irfft(found, n=out)


def _halves(index: Tensor, out: int, into: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each frequency (p, q) as one of the half spectra, and the sign of its imaginary part.

    Re[e^(ip) conj(X_q)] stays what it is where p is reflected and X conjugated, and so does X_q
    where q is reflected and X conjugated.
    """
    p, q = index // into, index % into
    flipped = (2 * p > out) ^ (2 * q > into)
    left, right = torch.where(2 * p > out, out - p, p), torch.where(2 * q > into, into - q, q)
    return left, right, torch.where(flipped, 1, -1)


@_harmonics.register_fake
def _(x: Tensor, values: Tensor, index: Tensor, out: int, into: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


@_gradients.register_fake
def _(
    grad: Tensor, x: Tensor | None, values: Tensor, index: Tensor, out: int, into: int, to_x: bool
) -> tuple[Tensor, Tensor]:
    for_x = grad.new_empty(*grad.shape[:-1], into) if to_x else grad.new_empty(0)
    return for_x, grad.new_empty(0 if x is None else values.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, ctx.out, ctx.into = inputs
    ctx.save_for_backward(x if values.requires_grad else None, values, index)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, index = ctx.saved_tensors
    to_x, to_values = ctx.needs_input_grad[:2]
    kept = x if to_values else None
    for_x, for_values = _gradients(grad, kept, values, index, ctx.out, ctx.into, to_x)
    return for_x if to_x else None, for_values if to_values else None, None, None, None


_harmonics.register_autograd(_backward, setup_context=_keep)
