"""`corank.for_inference`: codes in the layout of the kernels that run them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..models import find_sites, install, read
from ..operators import (
    BlockDiagonal,
    Decoded,
    Operator,
    Polyadic,
    Quantised,
    RowSparse,
    TensorTrain,
    in_planes,
)


def for_inference(model: nn.Module) -> dict[str, str]:
    """Put codes of 2 to 8 bits, in place, in the layout of torch's 4-bit kernel for the CPU.

    For bfloat16 models on the CPU, and for decoding: the kernel multiplies codes with the few rows
    of a step; for more rows the matrix is written down, as it is for codes as they are stored.
    Decoding one sequence was measured to be faster than with dense matrices, many were not.
    Outputs are the same up to the rounding of bfloat16. Codes of 2 and 3 bits take 4, those of 5 to
    7 take 8, and each side is padded to a multiple of 64 or of the group, so look at memory too.
    What is so made can be run but not saved or trained: save the model before.

    Returns the sites with codes that stay as they are, and why: other dtypes and devices, levels
    that are not evenly spaced, groups that the kernel does not know, embeddings.
    """
    left: dict[str, str] = {}
    done: dict[int, Operator] = {}
    for site in find_sites(model):
        op = read(model, site)
        places = list(_codes(op))
        if places and site.kind != "linear":
            left[site.name] = f"the kernel is for linear layers, and this is of kind {site.kind!r}"
            continue
        for parent, name, codes in places:
            made = done.get(id(codes)) or in_planes(codes)
            if isinstance(made, str):
                left[site.name] = made
                continue
            done[id(codes)] = made
            if parent is None:
                install(model, site, made)
            else:
                setattr(parent, name, made)
    return left


def _codes(
    op: nn.Module, parent: nn.Module | None = None, name: str = ""
) -> Iterator[tuple[nn.Module | None, str, Quantised]]:
    """Matrices in codes within an operator, and where each stands; not those of scales in codes,
    nor what no input is multiplied with: blocks below each other, numbers with places, cores."""
    if isinstance(op, BlockDiagonal | Decoded | Polyadic | RowSparse | TensorTrain):
        return
    if isinstance(op, Quantised):
        yield parent, name, op
        return
    for child_name, child in op.named_children():
        yield from _codes(child, op, child_name)
