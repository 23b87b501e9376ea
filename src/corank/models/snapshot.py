"""Going back to the modules a model had."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..layers.experts import Experts
from .site import Site
from .ties import ties_of


def snapshot(model: nn.Module, sites: Sequence[Site]) -> Callable[[], None]:
    """Remember what stands at the sites, their mixers' biases and what trains.

    Calling the result brings it back. No weight is copied: what is changed inside a tensor stays
    changed.
    """
    paths = {path for site in sites for path in (site.path, *site.tied)}
    modules = {path: model.get_submodule(path) for path in paths}
    experts = {
        module: (list(module.gate_up_proj), list(module.down_proj), set(module.rewritten))
        for module in modules.values()
        if isinstance(module, Experts)
    }
    convolved = {
        conv: conv._parameters.get("bias")
        for conv in (model.get_submodule(f"{s.mixer.path}.conv1d") for s in sites if s.mixer)
    }
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    put_ties_back = ties_of(model)

    def restore() -> None:
        for path, module in modules.items():
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent)._modules[name] = module
        for module, (gate_up, down, rewritten) in experts.items():
            for number, ops in enumerate(zip(gate_up, down, strict=True)):
                module.gate_up_proj[number], module.down_proj[number] = ops
            module.rewritten = set(rewritten)
        for conv, bias in convolved.items():
            conv._parameters["bias"] = bias
        for parameter, flag in trains.items():
            parameter.requires_grad_(flag)
        put_ties_back()

    return restore
