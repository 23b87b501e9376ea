"""Another operator in the place of one that trains."""

from __future__ import annotations

from ..models import install
from ..operators import Operator
from .control import Training


def replace(training: Training, site: str, op: Operator) -> None:
    """Put `op` where a factorised weight stands; the optimiser trains its leaves instead.

    They take the place of the first leaf that goes in its parameter group, without state of their
    own, so an optimiser made anew has them in the same order; leaves that stay keep theirs. What
    the weight has become is stored with the model: training resumes from a saved folder, not in a
    model that was factorised anew.
    """
    old = training.operators[site]
    install(training.model, training.sites[site], op)
    training.operators[site] = op
    if training.optimizer is None:
        return
    stays = {id(p) for other in training.operators.values() for p in other.parameters()}
    gone = {id(p): p for p in old.parameters() if id(p) not in stays}
    groups = training.optimizer.param_groups
    home = next((g for g in groups if any(id(p) in gone for p in g["params"])), groups[0])
    known = {id(p) for group in groups for p in group["params"]}
    leaves = home["params"]
    place = next((i for i, p in enumerate(leaves) if id(p) in gone), len(leaves))
    new = [p for p in op.parameters() if p.requires_grad and id(p) not in known]
    home["params"] = [*leaves[:place], *new, *leaves[place:]]
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for leaf in gone.values():
        training.optimizer.state.pop(leaf, None)
