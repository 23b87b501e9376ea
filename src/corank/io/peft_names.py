"""How PEFT names the files, the tensors and the patterns of a LoRA adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from ..models.kinds import PROJECTIONS

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

#: A quantifier over a group that itself repeats: what makes a regular expression take for ever.
_SLOW = re.compile(r"[+*}?][+*{]|[+*}][^()]*\)[+*{]")


def expert_prefixes(path: str, projections: list[str]) -> dict[str, str]:
    """Projection -> the prefix of its tensors: PEFT wraps a module once for each parameter, the
    first innermost."""
    wrapped = [name for name in PROJECTIONS if name in projections]
    depth = len(wrapped) - 1
    return {name: f"{path}{'.base_layer' * (depth - i)}" for i, name in enumerate(wrapped)}


def exactly(path: str) -> str:
    """The pattern of one path and no other."""
    return "^" + re.escape(path)


def pattern_value(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of `path`, as PEFT matches them.

    Raises FormatError for a pattern that is none, or that could take for ever.
    """
    for pattern, value in patterns.items():
        if len(pattern) > 512 or _SLOW.search(pattern):
            raise FormatError(
                f"the pattern {pattern[:80]!r} repeats what repeats; write it plainly"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error as error:
            raise FormatError(f"{pattern!r} is no regular expression: {error}") from error
    return default
