"""The tensors of one weight in a PEFT folder, and what every type makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import FormatError, SiteError
from ..models import Site
from ..operators import Base, Operator, Scaled, Sum
from .peft_names import pattern_value


@dataclass(frozen=True)
class Values:
    """The tensors of one weight, those of all, and the configuration."""

    own: Mapping[str, Tensor]
    shared: dict[Any, Any]
    config: Mapping[str, Any]
    path: str

    def scale(self, rank: int, alpha: str = "lora_alpha") -> float:
        """alpha / rank, alpha by its pattern; by the root of the rank where the file says so."""
        patterns = self.config.get("alpha_pattern") or {}
        value = pattern_value(patterns, self.path, self.config.get(alpha, 1))
        return float(value) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def one(self, *names: str) -> Tensor:
        """The tensor under the first of these names that there is. Raises FormatError."""
        for name in names:
            if name in self.own:
                return self.own[name]
        raise FormatError(f"{self.path} lacks its {names[0]}")


def plus(site: Site, term: Operator, scale: float = 1.0) -> Sum:
    """W + scale * term."""
    return Sum(Base(site.shape), term if scale == 1 else Scaled(term, scale))


def unreadable(site: Site, what: str) -> SiteError:
    """The refusal of `what`, at a site."""
    return SiteError(site.where, f"{what} is not read", "Merge it in PEFT, or leave it out.")
