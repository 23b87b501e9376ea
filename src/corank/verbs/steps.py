"""The steps of a composition: which method, with which parameters, on which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import unknown
from ..registry import METHODS, Method, Recipe
from .options import Options

#: What a step may say for itself, in the place of what the call says for all.
OWN = ("keep", "rank", "targets", "allocate", "cascade", "round_to")
_AREAS = ("compress", "quantize")
#: What only a call of one method may say, and what to do instead.
_OF_ONE = {
    "rank": "say rank in the step it is of",
    "dry_run": "how large each step is to be is found by doing them",
    "original": "what repairs is held against the model as it is given",
}


@dataclass(frozen=True)
class Step:
    """One method of a composition: its parameters, and `own`, what it says of `OWN`."""

    method: Method
    parameters: Mapping[str, Any]
    own: Mapping[str, Any]

    @property
    def label(self) -> str:
        """As a user would write it: "gptq(bits=4)"."""
        said = ", ".join(f"{k}={v!r}" for k, v in (*self.parameters.items(), *self.own.items()))
        return f"{self.method.key}({said})" if said else self.method.key

    @property
    def recipe(self) -> Recipe:
        """The configured method."""
        made: Recipe = self.method.recipe(self.parameters)
        return made

    @property
    def repairs(self) -> bool:
        """Whether it leaves what earlier steps made of a weight, and puts something beside it."""
        return self.method.area == "compress" and "compensates" in self.method.laws

    @property
    def is_sized(self) -> bool:
        """Whether it says itself how much of its weights is to stay."""
        ranked = "rank" in self.parameters and self.recipe.rank is not None
        return ranked or "keep" in self.own or "rank" in self.own

    def options(self, common: Options, **changed: Any) -> Options:
        """The options of its turn."""
        return replace(common, **{**changed, **self.own})


def refuse_of_one(options: Options) -> None:
    """Refuse options that mean nothing for several methods. ValueError."""
    for name, remedy in _OF_ONE.items():
        if getattr(options, name) is not None and getattr(options, name) is not False:
            raise ValueError(f"{name}= is for one method: {remedy}")


def read_steps(steps: Sequence[Any]) -> list[Step]:
    """Steps from keys, {key: {name: value}}, or (key, {name: value}).

    Names are the method's parameters, or one of `OWN`. Raises ValueError for no steps, an unknown
    method or name (with the nearest ones), a method of another area, and one that trains by itself
    or stores deltas.
    """
    if not steps:
        raise ValueError("a composition has at least one step: name a method")
    return [_read(step) for step in steps]


def _read(step: Any) -> Step:
    if isinstance(step, str):
        step = (step, {})
    elif isinstance(step, Mapping) and len(step) == 1:
        ((key, said),) = step.items()
        step = (key, said or {})
    if not (isinstance(step, (tuple, list)) and len(step) == 2 and isinstance(step[1], Mapping)):
        raise ValueError(f"a step is a method's key, or one key with its parameters, not {step!r}")
    key, said = step
    known = [name for name, found in METHODS.items() if found.area in _AREAS]
    if key not in known:
        raise unknown("method of compress or quantize", str(key), known)
    method = METHODS[key]
    for name in said:
        if name not in method.parameters and name not in OWN:
            raise unknown(f"parameter of {key!r}", name, [*method.parameters, *OWN])
    own = {name: v for name, v in said.items() if name in OWN and name not in method.parameters}
    made = Step(method, {name: v for name, v in said.items() if name not in own}, own)
    if made.recipe.heal is not None:
        raise ValueError(
            f"{key!r} trains by itself, towards the model that it is given: use it alone, or heal "
            "the whole composition by heal_minutes="
        )
    if made.recipe.delta:
        raise ValueError(f"{key!r} stores what fine-tuning changed, beside a base: use it alone")
    return made
