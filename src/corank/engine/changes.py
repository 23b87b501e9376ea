"""What fine-tuning changed in a model: taken out of it, so that it can be rewritten by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters.record import adapters
from ..errors import SiteError
from ..models import Site, install, read, survey
from ..models.kinds import PROJECTIONS
from ..operators import Base, Dense, Operator, Sum

#: What holds the weight in a plain module, in a layer of ours, in fused experts.
_WEIGHTS = ("weight", "operator.", *PROJECTIONS)
_REMEDY = "Give original= the very model that this one was fine-tuned from"


@dataclass(frozen=True)
class Changes:
    """Where a fine-tuned model differs from the one before.

    `sites` are the targeted weights that differ, `own` the values of all other parameters that do,
    by name: what a delta has to hold in full.
    """

    sites: list[Site]
    own: dict[str, Tensor]

    @property
    def own_bytes(self) -> int:
        """Bytes of the parameters held in full."""
        return sum(value.numel() * value.element_size() for value in self.own.values())


def find_changes(model: nn.Module, original: nn.Module, sites: Sequence[Site]) -> Changes:
    """Compare a model with the one it was fine-tuned from.

    Raises SiteError for a weight that the original lacks, or has in another shape or dtype, and for
    a changed expert that is not targeted while others of its module are; ValueError for other
    parameters or buffers that do not match, and where nothing differs.
    """
    for one, what in ((model, "model"), (original, "original")):
        if adapters(one):
            raise ValueError(
                f"the {what} carries adapters ({', '.join(adapters(one))}), whose change is not in "
                "its weights: corank.merge it, or delete them, first"
            )
    before = {site.name: site for site in survey(original)[0]}
    changed = [site for site in sites if _differs(model, original, site, before)]
    _require_whole_experts(model, original, sites, before)
    own = dict(_own(model, original, {path for s in sites for path in (s.path, *s.tied)}))
    if not changed:
        other = f", though {min(own)} does" if own else ""
        raise ValueError(
            f"no targeted weight differs from the original's{other}. Target weights that were "
            "fine-tuned, and give original= the model before that"
        )
    return Changes(changed, own)


def take_out(model: nn.Module, original: nn.Module, changes: Changes) -> dict[str, Operator]:
    """Put W - W0 in the place of each changed W, in W's dtype; returns copies of the W0s."""
    before = {}
    for site in changes.sites:
        op = read(model, site)
        base = copy.deepcopy(read(original, site)).to(op.device).requires_grad_(False)
        wide = torch.promote_types(op.dtype, torch.float32)
        change = (op.dense().to(wide) - base.dense().to(wide)).to(op.dtype)
        install(model, site, Dense(change.detach()))
        before[site.name] = base
    return before


def put_before(
    model: nn.Module, original: nn.Module, changes: Changes, bases: dict[str, Operator]
) -> dict[str, Operator]:
    """Make the model what it was before fine-tuning; returns W0 + what stood at each site."""
    made: dict[str, Operator] = {}
    for site in changes.sites:
        made[site.name] = Sum(Base(site.shape), read(model, site))
        install(model, site, bases[site.name])
    for name in changes.own:
        parameter = model.get_parameter(name)
        parameter.data = original.get_parameter(name).detach().to(parameter, copy=True)
    return made


def _differs(model: nn.Module, original: nn.Module, site: Site, before: dict[str, Site]) -> bool:
    there = before.get(site.name)
    if there is None or there.kind != site.kind:
        raise SiteError(site.where, "the original has no such weight", _REMEDY)
    new, old = read(model, site), read(original, there)
    if (new.shape, new.dtype) != (old.shape, old.dtype):
        was = f"{old.shape[0]}x{old.shape[1]} of {old.dtype}"
        raise SiteError(site.where, f"it is {new.dtype} here, and {was} in the original", _REMEDY)
    return not torch.equal(new.dense(), old.dense().to(new.device))


def _require_whole_experts(
    model: nn.Module, original: nn.Module, sites: Sequence[Site], before: dict[str, Site]
) -> None:
    names, paths = {s.name for s in sites}, {s.path for s in sites if s.kind == "expert"}
    for site in survey(model)[0]:
        inside = site.kind == "expert" and site.path in paths
        if inside and site.name not in names and _differs(model, original, site, before):
            raise SiteError(
                site.where, "it was fine-tuned, and experts beside it are targeted",
                "Target all experts of the module, or none, which stores it in full",
            )  # fmt: skip


def _own(model: nn.Module, original: nn.Module, targeted: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The parameters outside the targeted weights that differ; every buffer must be the same."""

    weights = tuple(f"{path}.{leaf}" for path in targeted for leaf in _WEIGHTS)

    def outside(named: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in named if not name.startswith(weights)}

    for kind in ("parameters", "buffers"):
        new, old = (outside(getattr(one, f"named_{kind}")()) for one in (model, original))
        if lost := sorted(new.keys() ^ old.keys()):
            raise ValueError(f"{lost[0]} is in one of model and original only. {_REMEDY}")
        for name, tensor in new.items():
            if (tensor.shape, tensor.dtype) != (old[name].shape, old[name].dtype):
                was = f"{tuple(old[name].shape)} of {old[name].dtype}"
                here = f"{tuple(tensor.shape)} of {tensor.dtype}"
                raise ValueError(f"{name} is {here}, and {was} in the original. {_REMEDY}")
            if torch.equal(tensor, old[name].to(tensor.device)):
                continue
            if kind == "buffers":
                raise ValueError(
                    f"the buffer {name} differs from the original's, and a delta holds parameters "
                    "only: set it to the original's, or fine-tune with it fixed"
                )
            yield name, tensor.detach().clone()
