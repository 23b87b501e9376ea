"""A place in a model where a weight matrix stands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from .heads import Heads
from .mixers import Mixer

#: How a weight is stored, and so how it is read and put back.
KINDS = ("linear", "conv1d_transposed", "conv", "embedding", "expert")


@dataclass(eq=False)
class Site:
    """One weight matrix of a model, of canonical shape (out, in).

    The canonical matrix is the weight itself for a linear layer, its transpose for transformers'
    Conv1D, (filters, channels * prod(kernel)) for a convolution, the stored table (vocab, dim) for
    an embedding, and one expert's slice for fused experts.
    """

    name: str  #: dotted module path; an expert's is "<module>.<projection>.<expert>"
    role: str  #: q, k, v, o, qkv, gate, up, gate_up, down, expert_*, router, embed, head, ...
    layer: int | None  #: index of the block it stands in, within its stack
    shape: tuple[int, int]  #: canonical (out, in)
    bias: bool
    kind: str  #: one of KINDS
    tied: tuple[str, ...] = ()  #: the other module paths over the same parameter
    seed: int = 0
    stats: dict[str, Any] = field(default_factory=dict, repr=False)  #: filled by calibration
    pool: dict[str, Any] = field(default_factory=dict, repr=False)  #: one per run, shared by sites
    foreign: bool = False  #: a quantised layer of another library's, for adapters only
    overrides: Mapping[str, Any] = field(default_factory=dict)  #: from a dict of targets
    #: The operators of the adapters that the weight carries already, by name.
    earlier: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kernel: tuple[int, ...] = ()  #: a convolution's kernel size, empty for other kinds
    heads: Heads | None = None  #: of q, k and v, where their attention says
    mixer: Mixer | None = None  #: of an in_proj, where it is one of a known mixer
    _drawing: torch.Generator | None = field(default=None, repr=False)

    def generator(self) -> torch.Generator:
        """A fresh CPU generator seeded from (seed, name): independent of order and device."""
        digest = hashlib.sha256(f"{self.seed}:{self.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def draws(self) -> torch.Generator:
        """The site's one generator that goes on from draw to draw, started as `generator` is."""
        if self._drawing is None:
            self._drawing = self.generator()
        return self._drawing

    @property
    def where(self) -> str:
        """The site as errors name it."""
        return f"{self.name} ({self.role}, {self.shape[0]}x{self.shape[1]})"

    @property
    def numel(self) -> int:
        """Numbers in the dense matrix, without the bias."""
        return self.shape[0] * self.shape[1]

    @property
    def bias_numel(self) -> int:
        """Numbers in a bias, if there is one: it is added to what the site gives out."""
        return self.shape[1] if self.kind == "embedding" else self.shape[0]

    @property
    def modes(self) -> tuple[int, ...]:
        """The weight's own shape: (filters, channels, *kernel) of a convolution, else (out, in)."""
        return (self.shape[0], self.shape[1] // prod(self.kernel), *self.kernel)

    @property
    def path(self) -> str:
        """The module that holds the weight: the name, less an expert's projection and number."""
        return self.expert[0] if self.kind == "expert" else self.name

    @property
    def expert(self) -> tuple[str, str, int]:
        """(module path, projection, number) of an expert's site. Raises ValueError for others."""
        if self.kind != "expert":
            raise ValueError(f"{self.name} is a site of kind {self.kind}, not an expert")
        path, projection, number = self.name.rsplit(".", 2)
        return path, projection, int(number)

    def stat(self, name: str) -> Tensor:
        """A statistic by name. Raises ValueError where calibration did not collect it."""
        if name not in self.stats:
            have = ", ".join(sorted(self.stats)) or "none"
            raise ValueError(
                f"{self.where}: the statistic {name!r} was not collected (has: {have})"
            )
        value = self.stats[name]
        return value if isinstance(value, Tensor) else torch.tensor(value)
