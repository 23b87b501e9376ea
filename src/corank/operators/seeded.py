from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cost import dense_flops
from .dense import Dense
from .operator import Operator
from .skeleton import storable
from .transpose import adjoint

#: What a number u, uniform in [0, 1), becomes. Exact in float32, so equal on every machine.
LAWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: 2 * u - 1,  # in [-1, 1), of variance 1/3
    "ternary": lambda u: (u >= 5 / 6).float() - (u < 1 / 6).float(),  # of variance 1/3
}


@storable
@final
class Seeded(Operator):
    """scale * R, for a frozen random R that is drawn again from its seed wherever it is built.

    Numbers are drawn row by row, in float32 on the CPU: R depends on neither device nor dtype, and
    a matrix with fewer rows is the beginning of one with more. Nothing of it is stored but the
    arguments; `checksum`, where given, is what the drawn numbers must have. Equal matrices of a
    process share their memory. It holds no values while it is built on the meta device, until its
    state is loaded or `materialise` is called.
    """

    matrix: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        seed: int,
        law: str = "uniform",
        scale: float = 1.0,
        precision: str = "float32",
        checksum: str | None = None,
    ) -> None:
        super().__init__()
        if law not in LAWS:
            raise ValueError(f"Seeded.law must be one of {', '.join(LAWS)}, got {law!r}")
        self.shape, self.seed, self.law, self.scale = (shape[0], shape[1]), seed, law, scale
        self.checksum = checksum
        here = torch.empty(0, dtype=getattr(torch, precision))
        self.register_buffer("matrix", self._shared(here), persistent=False)

    @property
    def precision(self) -> str:
        """The dtype that its values are in now."""
        return str(self.matrix.dtype).removeprefix("torch.")

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix)

    def dense(self) -> Tensor:
        return self.matrix

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.shape[0] * self.shape[1]

    def stored(self) -> Dense:
        """The same matrix as a leaf that is stored."""
        return Dense(self.matrix.clone())

    def _shared(self, like: Tensor) -> Tensor:
        """Its values in the dtype and on the device of `like`."""
        if like.is_meta:
            return like.new_empty(self.shape)
        key = (self.shape, self.seed, self.law, self.scale, like.dtype, like.device)
        digest, values = _DIGESTS.get(key), _VALUES.get(key)
        if digest is None or values is None:
            drawn = _draw(self.shape, self.seed, self.law)
            digest = hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16]
            values = (self.scale * drawn).to(like.device, like.dtype)
            _DIGESTS[key], _VALUES[key] = digest, values
        if self.checksum not in (None, digest):
            raise ValueError(
                f"seed {self.seed} gives other random numbers here than where this was made "
                f"(checksum {digest}, not {self.checksum}): make it again with the frozen "
                "matrices stored"
            )
        self.checksum = digest
        return values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Drawn anew rather than converted, so that equal matrices go on sharing their memory.
        here = fn(self.matrix.new_empty(0))
        if (here.device, here.dtype) != (self.matrix.device, self.matrix.dtype):
            self.matrix = self._shared(here)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        materialise(self, torch.device("cpu"))


_DIGESTS: dict[Any, str] = {}
_VALUES: WeakValueDictionary[Any, Tensor] = WeakValueDictionary()


def materialise(module: nn.Module, device: torch.device) -> None:
    """Draw every matrix in `module` again: on `device` where it was built on the meta device.

    The others too, where they are: a loader may have put uninitialised memory in their place.
    """
    for part in module.modules():
        if isinstance(part, Seeded):
            there = device if part.matrix.is_meta else part.matrix.device
            part.matrix = part._shared(torch.empty(0, dtype=part.matrix.dtype, device=there))


def _draw(shape: tuple[int, int], seed: int, law: str) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    u = torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu")
    return LAWS[law](u)


@adjoint.register
def _adjoint(op: Seeded, x: Tensor) -> Tensor:
    return x @ op.matrix


@dense_flops.register
def _dense_flops(op: Seeded) -> int:
    return 0
