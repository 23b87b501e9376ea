"""The inputs of a block, batch by batch, in memory or in files; and the call that they go into."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from torch import Tensor, nn

from ..errors import DataError, SiteError
from ..models import stacks
from .data import to_device
from .running import call


@final
class Stream:
    """One tensor per batch. folder: where they are kept as safetensors files; None: in memory."""

    def __init__(self, tensors: Sequence[Tensor], folder: Path | None, name: str) -> None:
        self._folder, self._name = folder, name
        self._held: list[Tensor | None] = [None] * len(tensors)
        for index, tensor in enumerate(tensors):
            self.put(index, tensor)

    def get(self, index: int, device: torch.device) -> Tensor:
        """A copy of the tensor of a batch; on `device`, where it comes from a file."""
        held = self._held[index]
        if held is not None:
            return held.clone()  # a block may write to its input
        from safetensors.torch import load_file

        return load_file(self._file(index), device=str(device))["hidden"]

    def put(self, index: int, tensor: Tensor) -> None:
        """Replace the tensor of a batch."""
        if self._folder is None:
            self._held[index] = tensor
            return
        from safetensors.torch import save_file

        fresh = self._file(index).with_suffix(".new")
        save_file({"hidden": tensor.contiguous()}, fresh)
        os.replace(fresh, self._file(index))

    def _file(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}-{index}.safetensors"


@dataclass(frozen=True)
class BlockCall:
    """How the model calls one block: all arguments, of which one is the stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: int | str  # of the stream among args or kwargs

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockCall:
        """The first tensor is taken for the stream, and not kept; nor is a cache."""
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        key = next(name for name, value in named if isinstance(value, Tensor))
        plain: dict[str, Any]
        plain = {name: None if "past_key_value" in name else v for name, v in kwargs.items()}
        if isinstance(key, int):
            return cls((*args[:key], None, *args[key + 1 :]), plain, key)
        return cls(args, plain | {key: None}, key)

    def run(self, block: Callable[..., Any], hidden: Tensor) -> Tensor:
        """The block's output for `hidden` in the place of the stream."""
        if isinstance(self.key, int):
            args = (*self.args[: self.key], hidden, *self.args[self.key + 1 :])
            return main_output(block(*args, **self.kwargs))
        return main_output(block(*self.args, **(self.kwargs | {self.key: hidden})))


def main_output(output: Any) -> Tensor:
    """The tensor that a block hands to the next one."""
    found = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(found, Tensor), "a block returns its hidden states first"
    return found


class _Captured(Exception):
    """Thrown out of the model once the last block's arguments are known."""


def only_stack(model: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """The blocks of a model that has one sequence of them. Raises SiteError for any other."""
    found = stacks(model)
    if len(found) != 1:
        names = ", ".join(stack.name for stack in found) or "none"
        raise SiteError(
            type(model).__name__,
            f"block by block needs one sequence of blocks, and this model's are: {names}",
            "Use corank.calibration.collect, which takes one pass over any model",
        )
    return found[0].blocks


def capture(
    model: nn.Module, blocks: Sequence[tuple[str, nn.Module]], batch: Any, device: torch.device
) -> tuple[Tensor, list[BlockCall]]:
    """(the first block's input, how each block is called) for one batch.

    Raises: SiteError if the model does not call the blocks once each, in order, each on what the
        one before returned.
    """
    calls: list[BlockCall] = []
    first: list[Tensor] = []
    handed: list[tuple[int, int]] = []

    def entered(index: int) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            made = BlockCall.of(args, kwargs)
            hidden = args[made.key] if isinstance(made.key, int) else kwargs[made.key]
            if len(calls) != index or (handed and handed[-1] != _identity(hidden)):
                raise _irregular(model, blocks[index][0])
            if not first:
                first.append(hidden.detach().clone())
            calls.append(made)
            if len(calls) == len(blocks):
                raise _Captured

        return before

    def left(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        handed.append(_identity(main_output(output)))

    handles = [b.register_forward_hook(left) for _, b in blocks] + [
        b.register_forward_pre_hook(entered(i), with_kwargs=True) for i, (_, b) in enumerate(blocks)
    ]
    try:
        call(model, to_device(batch, device))
    except _Captured:
        return first[0], calls
    finally:
        for handle in handles:
            handle.remove()
    raise _irregular(model, blocks[len(calls)][0])


def _identity(hidden: Tensor) -> tuple[int, int]:
    return hidden.data_ptr(), hidden._version


def _irregular(model: nn.Module, block: str) -> SiteError:
    return SiteError(
        f"{type(model).__name__}.{block}",
        "the model does not simply hand each block the output of the one before",
        "Use corank.calibration.collect, which takes one pass over any model",
    )


@contextmanager
def spill_folder(path: str | os.PathLike[str] | None) -> Iterator[Path | None]:
    """A temporary folder under `path`, gone afterwards; None for None."""
    if path is None:
        yield None
        return
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"spill={str(path)!r} is not a folder")
    with TemporaryDirectory(prefix="corank-spill-", dir=root) as folder:
        yield Path(folder)
