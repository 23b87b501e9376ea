"""Quantisers that round several neighbours together, to vectors learnt from the weight."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from ..linalg import learned_codebook, nearest_centres
from ..linalg.checks import check_finite
from ..models import Site
from ..operators import VectorQuantised, pack
from ..operators.packing import packed_width
from .quantizer import Quantizer


def vector_codebooks(
    bits: int = 8,
    length: int = 4,
    rows: int | None = None,
    rounds: int = 20,
    weighted: bool = False,
) -> Quantizer:
    """For every `length` neighbours in a row the nearest of 2**bits vectors.

    That is bits / length for each number. The vectors are the centres of k-means over the weight,
    or of one for each `rows` rows. bits: 1 to 8. weighted: errors count as the inputs' mean
    squares, the diagonal of their second moment; in an embedding as often as its rows are read.
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits must be 1, 2, ... or 8, got {bits}")
    if min(length, rounds, 1 if rows is None else rows) < 1:
        raise ValueError(f"length={length}, rows={rows} and rounds={rounds} are at least 1")

    def apply(weight: Tensor, site: Site) -> VectorQuantised:
        check_finite(weight, f"the weight of {site.where}")
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        into, generator = weight.shape[1], site.generator()
        heights = torch.ones_like(wide) if not weighted else _importance(wide, site)
        points, weights = (_vectors(part, length) for part in (wide, heights))
        height, books, codes = rows or len(wide), [], []
        for band, weigh in zip(points.split(height), weights.split(height), strict=True):
            p, w = band.flatten(0, 1), weigh.flatten(0, 1)
            centres = learned_codebook(p, w, 2**bits, rounds, generator)[0].to(weight.dtype)
            labels = nearest_centres(p, w, centres.to(p))  # of the vectors as they are stored
            books.append(centres)
            codes.append(labels.view(len(band), -1))
        packed = pack(torch.cat(codes), bits)
        return VectorQuantised(packed, torch.stack(books), (len(wide), into), bits, height)

    def counts(shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        out, across = shape[0], -(-shape[1] // length)
        values = prod((-(-out // (rows or out)), 2**bits, length))
        return out * across + values, out * packed_width(across, bits) + values * dtype.itemsize

    needs = frozenset({"square_mean"}) if weighted else frozenset()
    return Quantizer(apply, counts, needs)


def _importance(weight: Tensor, site: Site) -> Tensor:
    if "row_counts" in site.stats:
        return site.stats["row_counts"].to(weight)[:, None].expand_as(weight)
    return site.stats["square_mean"].to(weight).expand_as(weight)


def _vectors(matrix: Tensor, length: int) -> Tensor:
    """(out, ceil(in / length), length), the last filled with zeros."""
    return F.pad(matrix, (0, -matrix.shape[1] % length)).unflatten(1, (-1, length))
