"""What a model remembers of the adapters that it carries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import unknown
from ..models import Site
from ..operators import Adapted
from ..registry import Adaptation

_ATTRIBUTE = "corank_adapters"


@dataclass(eq=False)
class Adapter:
    """One named adapter: which method made it, of what, where, and how it acts while training."""

    name: str
    method: str
    parameters: Mapping[str, Any]
    targets: Any
    seed: int
    sites: dict[str, Site]
    recipe: Adaptation
    also: tuple[str, ...] = ()  #: parameters of the model itself that train with it
    kept: dict[str, Tensor] = field(default_factory=dict)  #: their values that are not in place
    in_place: bool = True  #: whether those in place are the adapter's
    trains: dict[str, tuple[str, ...]] = field(default_factory=dict)  #: site -> leaves that train


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters on a model, by name, in the order they came."""
    held: dict[str, Adapter] = vars(model).setdefault(_ATTRIBUTE, {})
    return held


def find_adapter(model: nn.Module, name: str) -> Adapter:
    """The adapter of that name. Raises ValueError with the nearest names."""
    held = adapters(model)
    if name not in held:
        raise unknown("adapter", name, held)
    return held[name]


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """The adapted weights of a model, by their site's name."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Adapted):
            found[path.removesuffix(".operator")] = module
    return found


def is_json(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
