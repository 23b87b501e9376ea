from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from ..models import Site

#: Where transformers keeps the names of tied weights.
_TIES = ("all_tied_weights_keys", "_tied_weights_keys")


@contextmanager
def unchanged_on_error(model: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Put the sites' modules back as they were if the body raises, whatever it has replaced."""
    places = {path for site in sites for path in (site.name, *site.tied)}
    saved = [_place(model, path) for path in places]
    ties = [(m, k, vars(m)[k]) for m in model.modules() for k in _TIES if k in vars(m)]
    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    except BaseException:
        for parent, name, module in saved:
            setattr(parent, name, module)
        for part, key, value in ties:
            setattr(part, key, value)
        for parameter, flag in frozen.items():
            parameter.requires_grad_(flag)
        raise


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str, nn.Module]:
    """The innermost module on `path`, with its parent and its name there."""
    parent, child, name = model, model, ""
    for part in path.split("."):
        below = child._modules.get(part)
        if below is None:
            break
        parent, child, name = child, below, part
    return parent, name, child
