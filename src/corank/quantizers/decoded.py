"""A quantiser that trains a small network for each matrix, and codes for what it decodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..linalg.checks import check_finite
from ..models import Site
from ..operators import Decoded, VectorQuantised
from ..operators.decoded import decode
from .nearest import round_to_nearest
from .quantizer import Quantizer
from .vectors import vector_codebooks

_RATES = (1e-2, 1e-2)  # of kernels, and of latents or their vectors
_SIDE = 3


def decoded_latents(
    bits: int = 8,
    length: int = 4,
    width: int = 8,
    stages: int = 2,
    steps: int = 200,
    kernel_bits: int = 8,
    group: int = 64,
) -> Quantizer:
    """Latent vectors in codes, and a convolutional decoder in `kernel_bits` that makes W of them.

    An image of W, its rows over their root mean squares, is halved `stages` times: each place has
    a latent of 4^stages channels, of which `length` at a time are one of 2**bits vectors. Decoder,
    `width` channels wide, and latents are trained together for the first half of `steps` to have
    the least squared error; then the latents' vectors are found by k-means and trained on with the
    decoder for the second half. See `operators.Decoded`.
    """
    if min(width, stages, steps) < 1:
        raise ValueError(f"width={width}, stages={stages} and steps={steps} are at least 1")
    channels, factor = 4**stages, 2**stages
    vectors = vector_codebooks(bits, length)
    rounding = round_to_nearest(kernel_bits, group, symmetric=True)
    area = _SIDE**2
    shapes = [
        (4 * width, (channels if i == 0 else width) * area) for i in range(stages)
    ] + [(1, width * area)]  # fmt: skip

    def apply(weight: Tensor, site: Site) -> Decoded:
        check_finite(weight, f"the weight of {site.where}")
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        scale = wide.square().mean(1).sqrt().to(weight.dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        image = wide / scale.to(wide)[:, None]
        places = (-(-len(wide) // factor), -(-wide.shape[1] // factor))
        generator = site.generator()

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(wide)

        kernels = [drawn(*shape) / math.sqrt(shape[1]) for shape in shapes]
        turned, _ = torch.linalg.qr(drawn(channels, channels))
        latents = _in_channels(image, places, factor) @ turned

        def lost() -> Tensor:
            made = decode(latents, kernels, places)[: len(wide), : wide.shape[1]]
            return (made - image).square().mean()

        _descend(lost, kernels, [latents], steps - steps // 2)
        held = vectors(latents.to(weight.dtype), site)
        assert isinstance(held, VectorQuantised)
        books = held.codebooks.detach().to(wide)

        def lost_in_codes() -> Tensor:
            made = decode(held.look_up(books), kernels, places)[: len(wide), : wide.shape[1]]
            return (made - image).square().mean()

        _descend(lost_in_codes, kernels, [books], steps // 2)
        with torch.no_grad():
            held.codebooks.copy_(books)
        coarse = [rounding(kernel.to(weight.dtype), site) for kernel in kernels]
        shape = (len(wide), wide.shape[1])
        return Decoded(*coarse, latents=held, scale=scale, shape=shape)

    def counts(shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        out, into = shape
        places = -(-out // factor) * -(-into // factor)
        made = [vectors.counts((places, channels), dtype)]
        made += [rounding.counts(kernel, dtype) for kernel in shapes]
        return sum(n for n, _ in made) + out, sum(b for _, b in made) + out * dtype.itemsize

    return Quantizer(apply, counts)


def _in_channels(image: Tensor, places: tuple[int, int], factor: int) -> Tensor:
    """(h w, factor^2): the image cut into squares, each a vector; edges filled with zeros."""
    down, right = (n * factor - side for n, side in zip(places, image.shape, strict=True))
    filled = F.pad(image, (0, right, 0, down))
    return F.pixel_unshuffle(filled[None], factor).flatten(1).mT.contiguous()


@torch.enable_grad()
def _descend(
    lost: Callable[[], Tensor], kernels: Sequence[Tensor], others: Sequence[Tensor], steps: int
) -> None:
    """Adam on the tensors, in place, with a cosine to a tenth of the rate."""
    groups = [
        {"params": [p.requires_grad_(True) for p in several], "lr": rate}
        for several, rate in zip((kernels, others), _RATES, strict=True)
    ]
    optimizer = torch.optim.Adam(groups)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=2e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        lost().backward()
        optimizer.step()
        rate.step()
    for tensor in (*kernels, *others):
        tensor.requires_grad_(False)
