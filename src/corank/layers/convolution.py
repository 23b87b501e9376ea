from __future__ import annotations

from functools import reduce
from math import prod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..operators.activated import FUNCTIONS, Activated
from ..operators.adapted import Adapted
from ..operators.base import Base
from ..operators.low_rank import LowRank
from ..operators.operator import Operator, is_linear
from ..operators.polyadic import Polyadic
from ..operators.precision import autocasts
from ..operators.product import Product
from ..operators.scaled import Scaled
from ..operators.select import Select
from ..operators.sum import Sum
from ..operators.tucker import Tucker
from .geometry import Geometry, slide
from .lazy import dense_of, lazy_dense
from .linear import as_bias
from .origin import Origin, initialised
from .rules import Rules, rule


@initialised
@final
class Convolution(nn.Module):
    """An operator of shape (out, in * prod(kernel)) in place of nn.Conv1d or nn.Conv2d.

    x (N, in, *spatial) or (in, *spatial) -> the same with out channels. Columns are ordered
    channel by channel, as in `conv.weight.flatten(1)`.
    """

    bias: nn.Parameter | None
    origin: Origin | None = None

    def __init__(
        self,
        operator: Operator,
        bias: Tensor | None = None,
        *,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if operator.shape[1] % prod(kernel_size):
            raise ValueError(
                f"Convolution: {operator.shape[1]} columns are no multiple of the "
                f"{prod(kernel_size)} taps of the kernel {kernel_size}"
            )
        self.operator = operator
        self.geometry = Geometry(kernel_size, stride, padding, dilation, padding_mode)
        self.register_parameter("bias", as_bias(bias, operator.shape[0], "Convolution.bias"))

    @property
    def in_channels(self) -> int:
        return self.operator.shape[1] // prod(self.geometry.kernel_size)

    @property
    def out_channels(self) -> int:
        return self.operator.shape[0]

    @property
    def weight(self) -> Tensor:
        """The dense kernel (out, in, *kernel)."""
        shape = (self.out_channels, self.in_channels, *self.geometry.kernel_size)
        return lazy_dense(self.operator, lambda matrix: matrix.reshape(shape), shape)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(self.operator, x, self.geometry)
        if self.bias is None:
            return y
        return y + self.bias.to(y.dtype).view(-1, *[1] * len(self.geometry.kernel_size))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.geometry}"


_CONVOLVE: Rules = {}


def convolve(op: Operator, x: Tensor, geometry: Geometry) -> Tensor:
    """x convolved with the kernel of `op`, structure by structure; a dense kernel if need be."""
    convolved = _CONVOLVE.get(type(op), _dense_convolve)
    out: Tensor = convolved(op, x, geometry)
    return out


def _dense_convolve(op: Operator, x: Tensor, geometry: Geometry) -> Tensor:
    return slide(dense_of(op), x, geometry)


@rule(_CONVOLVE, LowRank)
def _low_rank_convolve(op: LowRank, x: Tensor, geometry: Geometry) -> Tensor:
    z = slide(op.a, x, geometry)  # r filters where the kernel looks, then a 1x1 convolution
    channels = (-1, *[1] * len(geometry.kernel_size))
    if op.gate is not None:
        z = z * op.gate.to(z.dtype).view(channels)
    if op.mask is not None:
        z = z * op.mask.to(z.dtype).view(channels)
    convolution = F.conv1d if len(geometry.kernel_size) == 1 else F.conv2d
    return convolution(z, op.b.reshape(*op.b.shape, *channels[1:]))


@rule(_CONVOLVE, Base)
def _base_convolve(op: Base, x: Tensor, geometry: Geometry) -> Tensor:
    dtype = x.dtype if autocasts(x.device) else op.bound.dtype
    y = convolve(op.bound, x.to(dtype), geometry)
    return y if dtype == x.dtype else y.to(x.dtype)


@rule(_CONVOLVE, Adapted)
def _adapted_convolve(op: Adapted, x: Tensor, geometry: Geometry) -> Tensor:
    return op.through(lambda view, x: convolve(view, x, geometry), x)


@rule(_CONVOLVE, Sum)
def _sum_convolve(op: Sum, x: Tensor, geometry: Geometry) -> Tensor:
    return reduce(torch.add, [convolve(term, x, geometry) for term in op.operators])


@rule(_CONVOLVE, Scaled)
def _scaled_convolve(op: Scaled, x: Tensor, geometry: Geometry) -> Tensor:
    return op.scale * convolve(op.operator, x, geometry)


@rule(_CONVOLVE, Select)
def _select_convolve(op: Select, x: Tensor, geometry: Geometry) -> Tensor:
    return slide(op.dense().to(x.dtype), x, geometry)  # it holds no number, so no dtype


@rule(_CONVOLVE, Activated)
def _activated_convolve(op: Activated, x: Tensor, geometry: Geometry) -> Tensor:
    return FUNCTIONS[op.function](convolve(op.operator, x, geometry))


@rule(_CONVOLVE, Product)
def _product_convolve(op: Product, x: Tensor, geometry: Geometry) -> Tensor:
    wider = op.flops(1) > 2 * op.shape[0] * op.shape[1]  # between its factors than its kernel
    if wider and is_linear(op):
        return _dense_convolve(op, x, geometry)
    *others, first = op.operators  # the one that meets x slides, the others mix channels
    channels = -1 - len(geometry.kernel_size)
    y = convolve(first, x, geometry).movedim(channels, -1)
    for factor in reversed(others):
        y = factor(y)
    return y.movedim(-1, channels)


@rule(_CONVOLVE, Tucker)
def _tucker_convolve(op: Tucker, x: Tensor, geometry: Geometry) -> Tensor:
    if op.sizes[2:] != geometry.kernel_size:  # its modes are not channels and taps
        return _dense_convolve(op, x, geometry)
    first, second = list(op.operators)[:2]
    channels = -1 - len(geometry.kernel_size)
    z = (x.movedim(channels, -1) @ second.dense()).movedim(-1, channels)
    kernel = op.contracted(2).flatten(1)  # (r0, r1 * taps): few channels slide, others are mixed
    y: Tensor = first(slide(kernel, z, geometry).movedim(channels, -1))
    return y.movedim(-1, channels)


@rule(_CONVOLVE, Polyadic)
def _polyadic_convolve(op: Polyadic, x: Tensor, geometry: Geometry) -> Tensor:
    if op.sizes[2:] != geometry.kernel_size:  # its modes are not channels and taps
        return _dense_convolve(op, x, geometry)
    first, second, *taps = op.operators
    channels = -1 - len(geometry.kernel_size)
    z = (x.movedim(channels, -1) @ second.dense()).movedim(-1, channels)
    for axis, factor in enumerate(taps):  # one filter of one axis for each term
        z = slide(factor.dense().mT, z, geometry.along(axis), groups=op.rank)
    y: Tensor = first(z.movedim(channels, -1))
    return y.movedim(-1, channels)
