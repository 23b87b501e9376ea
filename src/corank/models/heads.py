"""How an attention divides the outputs of q, k and v into heads, and what turns together."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: What attentions of transformers call the size of a head.
_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim")
#: What models with rotary embeddings call the function that turns a quarter.
_TURNS = ("rotate_half", "rotate_every_two")
#: A norm over a head's dimensions, for which a dimension that is zero is not one that is gone.
_NORM = r"^(q|k|qk|query|key)_?(layer_?)?norm"
#: What stands between the values and the projection that reads them, so that they cannot be turned.
_BETWEEN = r"(norm|gate|g_proj|sinks)"


@dataclass(frozen=True)
class Heads:
    """`size` dimensions to a head, of which those of one of `units` only make sense together.

    Rotary embeddings turn pairs; without them each dimension is by itself. None says that no
    dimension of queries and keys can be dropped alone: they are normalised, or turned in a way
    that is not known.
    """

    size: int
    units: tuple[tuple[int, ...], ...] | None


def heads_of(model: nn.Module, path: str) -> Heads | None:
    """The heads of the attention that the weight at `path` belongs to.

    None where nothing says, or where it is no plain attention: what it reads of the values is
    normalised or gated, or its weights do not sum to one.
    """
    around = list(_around(model, path))
    if not _is_plain(around[0]):
        return None
    for module in around:
        size = next((getattr(module, name) for name in _SIZES if hasattr(module, name)), None)
        if isinstance(size, int):
            return Heads(size, _units(module, size))
    for module in around:
        config = getattr(module, "config", None)
        width, count = (
            getattr(config, name, None) for name in ("hidden_size", "num_attention_heads")
        )
        if isinstance(width, int) and isinstance(count, int) and width % count == 0:
            return Heads(width // count, _units(around[0], width // count))
    return None


def _around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules that a path lies in, from the inside."""
    while path:
        path = path.rpartition(".")[0]
        yield model.get_submodule(path)


def _is_plain(attention: nn.Module) -> bool:
    names = [*attention._modules, *attention._parameters]
    if any(re.search(_BETWEEN, name) and not re.match(_NORM, name) for name in names):
        return False
    queries, output = (getattr(attention, name, None) for name in ("q_proj", "o_proj"))
    made, read = getattr(queries, "out_features", None), getattr(output, "in_features", None)
    return made is None or read is None or made == read  # else it makes gates too


def _units(attention: nn.Module, size: int) -> tuple[tuple[int, ...], ...] | None:
    normed = any(re.match(_NORM, name) for name, _ in attention.named_children())
    if normed or hasattr(attention, "qk_rope_head_dim"):
        return None
    code = vars(sys.modules[type(attention).__module__])
    turn = next((code[name] for name in _TURNS if name in code), None)
    if turn is None:
        unknown = any(name.startswith("apply_rotary") for name in code)
        return None if unknown else tuple((j,) for j in range(size))
    return _pairs(turn, _turned(attention, size), size)


def _turned(attention: nn.Module, size: int) -> int:
    """How many of the first dimensions of a head are turned."""
    config: Any = getattr(attention, "config", None)
    rope = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return size if share is None else int(size * share)


def _pairs(
    turn: Callable[[torch.Tensor], torch.Tensor], turned: int, size: int
) -> tuple[tuple[int, ...], ...] | None:
    """Which dimension `turn` puts in the place of which; the rest in pairs of neighbours."""
    if turned % 2 or size % 2:
        return None
    numbers = torch.arange(1.0, turned + 1, device="cpu")
    partner = turn(numbers[None, None, None]).flatten().abs().long() - 1
    pairs = {tuple(sorted((j, other))) for j, other in enumerate(partner.tolist())}
    rest = {(j, j + 1) for j in range(turned, size, 2)}
    return tuple(sorted(pairs | rest)) if len(pairs) == turned // 2 else None
