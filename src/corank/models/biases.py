"""The biases that go with weights which are rewritten together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..operators import Operator
from .places import install, read_bias
from .site import Site


def read_biases(model: nn.Module, sites: Sequence[Site]) -> list[Tensor | None]:
    """The bias of each site, then those of the convolutions that mixers among them feed."""
    beside = [_convolution(model, site)._parameters["bias"] for site in sites if site.mixer]
    return [*(read_bias(model, site) for site in sites), *beside]


def install_together(
    model: nn.Module,
    sites: Sequence[Site],
    ops: Sequence[Operator],
    biases: Sequence[Tensor | None],
) -> None:
    """Put operators at their sites, and biases as `read_biases` gives them; None keeps one."""
    for site, op, bias in zip(sites, ops, biases[: len(sites)], strict=True):
        install(model, site, op, bias)
    mixers = [site for site in sites if site.mixer]
    for site, bias in zip(mixers, biases[len(sites) :], strict=True):
        if bias is not None:
            put_convolved_bias(model, site, bias)


def put_convolved_bias(model: nn.Module, site: Site, bias: Tensor) -> None:
    """Give the convolution of a mixer another bias (channels,), as a parameter of its own."""
    conv = _convolution(model, site)
    old = conv.get_parameter("bias")
    fresh = bias.detach().to(old)
    conv._parameters["bias"] = nn.Parameter(fresh, requires_grad=old.requires_grad)


def _convolution(model: nn.Module, site: Site) -> nn.Module:
    assert site.mixer is not None
    return model.get_submodule(f"{site.mixer.path}.conv1d")
