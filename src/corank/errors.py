"""Errors that say where, what and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SiteError(ValueError):
    """A weight that cannot be handled as asked."""

    def __init__(self, site: str, problem: str, remedy: str) -> None:
        super().__init__(f"{site}: {problem}. {remedy}")
        self.site, self.problem, self.remedy = site, problem, remedy


class DataError(ValueError):
    """Calibration data that cannot be used as it is."""


class FormatError(ValueError):
    """A file or folder that corank will not read: truncated, edited, or from a newer version."""


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not among `known`, with the nearest ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(names)}"
    return ValueError(f"unknown {what} {name!r}: {hint}")
