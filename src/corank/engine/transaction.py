from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from ..models import Site, snapshot


@contextmanager
def unchanged_on_error(model: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Put the sites' modules, ties and flags back if the body raises, whatever it has replaced."""
    undo = snapshot(model, sites)
    try:
        yield
    except BaseException:
        undo()
        raise
