"""The repeated blocks of a model: which stacks there are, and what stands in which block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..operators.operator import Operator


@dataclass(frozen=True)
class Stack:
    """One sequence of blocks, such as an encoder's layers, in the order they are called."""

    name: str
    blocks: tuple[tuple[str, nn.Module], ...]  #: (dotted path, module)


def stacks(model: nn.Module) -> list[Stack]:
    """The outermost lists of blocks: one for a decoder, two for T5 or CLIP, none for a plain MLP.

    A block is a child, with children of its own and a weight matrix, of an nn.ModuleList or of an
    nn.Sequential of two or more modules of one class. The parts of an operator are none.
    """
    return list(_stacks_within(model, "", set()))


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of every stack, stack after stack: (dotted path, module)."""
    return [block for stack in stacks(model) for block in stack.blocks]


def layer_indices(model: nn.Module) -> dict[str, int]:
    """Path of each block -> its index within its stack."""
    return {path: i for stack in stacks(model) for i, (path, _) in enumerate(stack.blocks)}


def layer_of(path: str, indices: dict[str, int]) -> int | None:
    """The index of the block that a dotted path stands in, None outside every stack."""
    while path:
        if path in indices:
            return indices[path]
        path = path.rpartition(".")[0]
    return None


def _stacks_within(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[Stack]:
    for key, child in module.named_children():
        if isinstance(child, Operator) or id(child) in seen:
            continue
        seen.add(id(child))
        name = prefix + key
        if _repeats(child):
            parts = child.named_children()
            yield Stack(name, tuple((f"{name}.{part}", block) for part, block in parts))
        else:
            yield from _stacks_within(child, f"{name}.", seen)


def _repeats(module: nn.Module) -> bool:
    children = list(module.children())
    if not children or not all(_is_block(child) for child in children):
        return False
    if isinstance(module, nn.ModuleList):
        return True
    one_class = len({type(child) for child in children}) == 1
    return isinstance(module, nn.Sequential) and len(children) > 1 and one_class


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, Operator):
        return False
    has_matrix = any(parameter.ndim > 1 for parameter in module.parameters())
    return has_matrix and any(True for _ in module.children())
