"""Codes in the layout of torch's 4-bit kernel for the CPU."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator
from .packing import unpack
from .quantised import Quantised
from .through import apply_dense

#: Groups that the kernel knows.
_GROUPS = (256, 128, 64, 32)
#: Rows of x, times planes, up to which the kernel is faster than writing the matrix down.
_FEW = 48
#: Rows of a matrix that are padded to: a multiple of every processor's block.
_ROWS = 64


@final
class FourBitPlanes(Operator):
    """A matrix of uniform codes as one plane of 4 bits or, for codes of 5 to 8 bits, as two.

    - `planes` (planes, out', in' / 2) uint8: each in the kernel's layout, out and in padded;
    - `scales` (planes, in' / group, out', 2) bfloat16: what a step of a plane is worth, and what
      the middle of its range stands for.

    A code q of a plane stands for step * (q - 8) + middle; the matrix is the sum of the planes. A
    few rows of bfloat16 x go through the kernel, which is made for decoding; more rows, or others,
    meet the matrix written down. It is made for running: `corank.save` takes the codes it is of.
    """

    not_stored: ClassVar[str] = "it was made for running: save the model before for_inference"

    planes: Tensor
    scales: Tensor

    def __init__(self, planes: Tensor, scales: Tensor, shape: tuple[int, int], group: int) -> None:
        super().__init__()
        self.shape, self.group = shape, group
        self.numbers_held = {"planes": shape[0] * shape[1]}
        self.register_buffer("planes", planes)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.shape[1]
        served = x.device.type == "cpu" and x.dtype == torch.bfloat16 and rows > 0
        if not served or rows * len(self.planes) > _FEW or torch.is_grad_enabled():
            return apply_dense(self, x)
        flat = F.pad(x.reshape(rows, -1), (0, self._padded - self.shape[1]))
        y = self._product(flat, 0)
        for plane in range(1, self.planes.shape[0]):
            y = y + self._product(flat, plane)
        return y[:, : self.shape[0]].reshape(*x.shape[:-1], -1)

    def dense(self) -> Tensor:
        codes, middle, centre = _unpack(self.planes[0]), self.scales[0, ..., 1].float(), 8
        step = self.scales[-1, ..., 0]
        if len(self.planes) == 2:
            codes, centre = codes * 16 + _unpack(self.planes[1]), 128
            middle = middle + self.scales[1, ..., 1].float() - 8 * step.float()
        values = codes.unflatten(1, (-1, self.group)).to(step.dtype) - centre
        weight = values * step.T[..., None] + middle.to(step.dtype).T[..., None]
        return weight.flatten(1)[: self.shape[0], : self.shape[1]]

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]

    @property
    def _padded(self) -> int:
        return self.planes.shape[2] * 2

    def _product(self, x: Tensor, plane: int) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.planes[plane], self.group, self.scales[plane]
        )


def in_planes(op: Quantised) -> FourBitPlanes | str:
    """The same matrix for the kernel, or why it does not take it.

    Its numbers are those of `op` up to the rounding of bfloat16.
    """
    out, into = op.shape
    whole = op.group >= into
    group = next((g for g in _GROUPS if whole or op.group % g == 0), None)
    scales = op.scales().detach()
    if op.device.type != "cpu" or scales.dtype != torch.bfloat16:
        return f"the kernel is for bfloat16 on the CPU, not {scales.dtype} on {op.device.type}"
    if op.levels is not None:
        return "its codes stand for levels that are not evenly spaced"
    if group is None:
        return f"the kernel takes groups of {', '.join(map(str, _GROUPS))}, not {op.group}"
    if _block() is None:
        return "the kernel of this processor has a layout that is not known here"
    padded = -(-into // group) * group if whole else scales.shape[1] * op.group
    half = 2 ** (op.bits - 1)
    codes = unpack(op.codes, op.bits, into).int() + (8 if op.bits <= 4 else 128) - half
    codes = F.pad(codes, (0, padded - into, 0, -out % _ROWS))
    step = scales.float()
    middle = step * (half - (half if op.zero is None else op.zero.float()))
    if op.bits <= 4:
        planes, steps, middles = [codes], [step], [middle]
    else:  # the lower plane's range, 0..15, has its middle 8 steps above what it adds
        planes, steps = [codes >> 4, codes & 15], [16 * step, step]
        middles = [middle.bfloat16().float(), middle - middle.bfloat16().float() + 8 * step]
    tables = [_table(*pair, codes.shape, group) for pair in zip(steps, middles, strict=True)]
    laid_out = torch.stack([_pack(plane) for plane in planes])
    return FourBitPlanes(laid_out, torch.stack(tables), op.shape, group)


def _table(step: Tensor, middle: Tensor, shape: torch.Size, group: int) -> Tensor:
    """(in' / group, out', 2) bfloat16 of (out, groups) each."""
    pair = torch.stack([step, middle], -1)
    pair = pair.repeat_interleave(shape[1] // group // step.shape[1], 1)
    pair = F.pad(pair, (0, 0, 0, 0, 0, shape[0] - step.shape[0]))
    return pair.transpose(0, 1).contiguous().bfloat16()


def _pack(codes: Tensor) -> Tensor:  # (out', in') int32 -> (out', in' / 2) uint8
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.contiguous(), 2)


def _unpack(plane: Tensor, block: int | None = None) -> Tensor:  # the inverse of `_pack`
    """Blocks of rows, each column by column: a byte has a row of the first half, and its other."""
    block = block or _block() or _ROWS
    out, half = plane.shape
    columns = plane.view(out // block, 2 * half, block // 2)
    codes = torch.cat([columns & 15, columns >> 4], -1)
    return codes.transpose(1, 2).reshape(out, 2 * half)


@cache
def _block() -> int | None:
    """How many rows this processor's layout takes together, by trying."""
    codes = torch.arange(_ROWS * 32, dtype=torch.int32).view(_ROWS, 32) * 7 % 16
    try:
        plane = _pack(codes)
    except (RuntimeError, AttributeError):
        return None
    return next((b for b in (64, 32, 16) if bool((_unpack(plane, b) == codes).all())), None)


@dense_flops.register
def _dense_flops(op: FourBitPlanes) -> int:
    return 3 * op.shape[0] * op.shape[1]
