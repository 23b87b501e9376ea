"""From what a module is called with to the rows x that its weight matrix multiplies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError
from ..layers.geometry import Geometry
from ..models import Site

_PATCH_NUMBERS = 1 << 24  # unfolded patches held at once


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor a module was called with. Raises DataError if there is none."""
    found = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    if found is None:
        raise DataError(
            "a site of the model cannot be called with a batch of this form: its module was given "
            "no tensor"
        )
    return found


@dataclass(frozen=True)
class Masks:
    """The padding masks (samples, length) of one batch; None where nothing is padded."""

    main: Tensor | None
    decoder: Tensor | None
    encoder_decoder: bool

    @classmethod
    def of(cls, model: nn.Module, batch: Any) -> Masks:
        names = ("attention_mask", "decoder_attention_mask")
        main, decoder = (_padding(batch, name) for name in names)
        config = getattr(model, "config", None)
        return cls(main, decoder, bool(getattr(config, "is_encoder_decoder", False)))

    def at(self, site: Site, path: str | None = None) -> Tensor | None:
        """The mask of the stream that a site reads: cross-attention keys read the encoder's.

        path: which of the modules that hold the site's weight; None is the first.
        """
        if not self.encoder_decoder:
            return self.main
        parts = (site.name if path is None else path).lower().replace("_", "").split(".")
        crosses = any(p in ("encdecattention", "encoderattn", "crossattention") for p in parts)
        if crosses and site.role in ("k", "v", "kv"):
            return self.main
        return self.main if "encoder" in parts else self.decoder


def _padding(batch: Any, name: str) -> Tensor | None:
    mask = batch.get(name) if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool((mask != 0).all()):
        return None
    return mask != 0


def kept(leading: torch.Size, mask: Tensor | None) -> Tensor | None:
    """Which of the flattened rows are not padding: (rows,) booleans, or None for all.

    leading: the axes in front of the features. A mask that does not match them says nothing.
    """
    if mask is None or not _fits(leading, mask):
        return None
    return mask.reshape(-1)


def unmatched(leading: torch.Size, mask: Tensor | None) -> bool:
    """Whether there is padding that cannot be told apart in rows of these leading axes."""
    pooled = mask is not None and tuple(leading) == (mask.shape[0],)
    return mask is not None and not pooled and not _fits(leading, mask)


def flat_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """A copy of the rows (R, features) of x (..., features) that are not padding."""
    keep = kept(x.shape[:-1], mask)
    rows = x.reshape(-1, x.shape[-1])
    return rows.clone() if keep is None else rows[keep.to(rows.device)]


def output_rows(y: Tensor, dims: int, mask: Tensor | None) -> Tensor:
    """A copy of a module's output as rows (R, out); dims: of a convolution, 0 for others.

    A convolution's rows run as its `patches` do, with none taken for padding.
    """
    if dims == 0:
        return flat_rows(y, mask)
    return flat_rows(y.movedim(-dims - 1, -1), None)


def patch_rows(x: Tensor, module: nn.Module) -> Tensor:
    """All the `patches` of x that a convolution reads, (R, in)."""
    return torch.cat(list(patches(x, geometry_of(module))))


def _fits(leading: torch.Size, mask: Tensor) -> bool:
    return tuple(leading) in (tuple(mask.shape), (mask.numel(),))


def geometry_of(module: nn.Module) -> Geometry:
    """Where a convolution looks, for nn.Conv1d, nn.Conv2d and corank's own."""
    own = getattr(module, "geometry", None)
    if isinstance(own, Geometry):
        return own
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    return Geometry(
        tuple(module.kernel_size),
        tuple(module.stride),
        module.padding if isinstance(module.padding, str) else tuple(module.padding),
        tuple(module.dilation),
        module.padding_mode,
    )


def patches(x: Tensor, geometry: Geometry) -> Iterator[Tensor]:
    """The unfolded patches (rows, channels * prod(kernel)) of x (N, channels, *spatial), in chunks.

    Rows run over samples, then positions; columns as in `weight.flatten(1)`.
    """
    dims = len(geometry.kernel_size)
    if x.ndim == dims + 1:
        x = x[None]
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    one = (1,) * (2 - dims)
    for sample in x.split(1):
        padded = F.pad(sample, geometry.pads, mode=mode)
        if dims == 1:
            padded = padded[:, :, None]
        unfolded = F.unfold(
            padded,
            one + geometry.kernel_size,
            dilation=one + geometry.dilation,
            stride=one + geometry.stride,
        )  # (1, channels * prod(kernel), positions)
        step = max(1, _PATCH_NUMBERS // unfolded.shape[1])
        yield from unfolded[0].T.split(step)
