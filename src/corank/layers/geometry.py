"""Where a convolution looks, and a kernel that slides there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Geometry:
    """Where a convolution looks, in one or two spatial dimensions: nn.Conv1d/2d's arguments."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"

    @property
    def pads(self) -> list[int]:
        """Both sides of every spatial axis, last axis first, as F.pad takes them."""
        if self.padding == "valid":
            return [0] * (2 * len(self.kernel_size))
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(p, p) for p in self.padding]
        return [side for axis in reversed(sides) for side in axis]

    def along(self, axis: int) -> Geometry:
        """What is left of it for a kernel of one tap on all axes but one."""

        def only(values: tuple[int, ...], other: int) -> tuple[int, ...]:
            return tuple(value if i == axis else other for i, value in enumerate(values))

        padding = self.padding if isinstance(self.padding, str) else only(self.padding, 0)
        return replace(
            self, kernel_size=only(self.kernel_size, 1), stride=only(self.stride, 1),
            padding=padding, dilation=only(self.dilation, 1),
        )  # fmt: skip


def slide(matrix: Tensor, x: Tensor, geometry: Geometry, groups: int = 1) -> Tensor:
    """x convolved with a kernel given as a matrix (out, in / groups * prod(kernel))."""
    kernel = matrix.reshape(matrix.shape[0], -1, *geometry.kernel_size)
    convolution = F.conv1d if len(geometry.kernel_size) == 1 else F.conv2d
    padding: tuple[int, ...] | str | int = geometry.padding
    if geometry.padding_mode != "zeros":
        x, padding = F.pad(x, geometry.pads, mode=geometry.padding_mode), 0
    return convolution(x, kernel, None, geometry.stride, padding, geometry.dilation, groups)
