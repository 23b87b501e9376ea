"""What was done to a model, as data: the one result of every verb."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class SiteRow:
    """One site: what it was and what it became. `error` is relative, in the method's metric.

    Of an adapter: `numel_after` numbers are stored beside the weight, `trainable` of them train.
    """

    name: str
    role: str
    layer: int | None
    shape: tuple[int, int]
    numel_before: int
    numel_after: int
    bytes_before: int
    bytes_after: int
    operator: str
    rank: int | None = None
    error: float | None = None
    trainable: int | None = None

    @property
    def keep(self) -> float:
        """The fraction of the numbers that stayed."""
        return self.numel_after / self.numel_before


@dataclass
class Report:
    """The result of a verb.

    `sites` has a row for each weight; `totals` the numbers and bytes of the sites and the model;
    `seconds` where the time went; `notes` what a user should know; `refused` the weights left
    alone, with the reason; `sections` further measurements (fidelity, speed, spectra).
    """

    verb: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    sites: list[SiteRow] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything in the report, as plain JSON values."""
        return json.loads(json.dumps(asdict(self), default=str))

    def table(self) -> str:
        """The sites and the totals as a plain text table."""
        from .text import render_text

        return render_text(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report to `path`, by its ending: .html (self-contained), .json or .md.

        Raises ValueError for another ending.
        """
        from .writers import write

        return write(self, Path(path))

    def _repr_html_(self) -> str:
        from .html import render_html

        return render_html(self)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("corank", "torch", "transformers", "safetensors", "torchao"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
