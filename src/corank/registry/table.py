"""Every method by its key: where its paper says so, and which laws it obeys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, final

from ..errors import unknown
from .parts import Paper


@dataclass(frozen=True)
class Method:
    """A registered method: `build(**params)` returns its Recipe, its Adaptation, its Factorization
    or, for a probe, its value.

    `equation(w, leaves, **params)` is the paper's line for W', written with plain tensors.
    """

    key: str
    area: str
    paper: Paper
    build: Callable[..., Any]
    laws: frozenset[str] = field(default_factory=frozenset)
    equation: Callable[..., Any] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Each parameter's default; `inspect.Parameter.empty` where it has none."""
        return {
            name: p.default
            for name, p in inspect.signature(self.build).parameters.items()
            if p.kind is not p.VAR_POSITIONAL
        }

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.build) or "").split("\n", 1)[0]

    def recipe(self, params: Mapping[str, Any]) -> Any:
        """The method with these parameters; an unknown one raises with the nearest names.

        Raises ValueError for one that works on whole models and is a function to be called.
        """
        if "setting" in self.laws:
            raise ValueError(f"{self.key!r} works on whole models: call corank.settings.{self.key}")
        for name in params:
            if name not in self.parameters:
                raise unknown(f"parameter of {self.key!r}", name, self.parameters)
        usual = self.parameters.get("rank", 1)
        rank = params.get("rank", usual)
        if rank is not usual and (not isinstance(rank, int) or rank < 1):
            raise ValueError(f"{self.key!r}: rank must be an integer of at least 1, got {rank!r}")
        return self.build(**params)

    def to_json(self) -> dict[str, Any]:
        """Key, area, summary, paper, parameters and laws, as plain JSON values."""
        return {
            "key": self.key,
            "area": self.area,
            "summary": self.summary,
            "paper": vars(self.paper),
            "parameters": {k: _plain(v) for k, v in self.parameters.items()},
            "laws": sorted(self.laws),
        }


@final
class _Registry(Mapping[str, Method]):
    """The registered methods by key; ours are registered when somebody first looks."""

    def __init__(self) -> None:
        self.found: dict[str, Method] = {}
        self.complete = False

    def __getitem__(self, key: str) -> Method:
        return self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Method]:
        if not self.complete:
            self.complete = True
            import_module("..recipes", __package__)
        return self.found


METHODS = _Registry()

#: The verb that takes the methods of an area.
_VERBS = {"compress": "compress", "quantize": "quantize", "adapt": "adapt", "train": "factorize"}


def method(
    paper: Paper,
    *,
    area: str,
    laws: Sequence[str] = (),
    key: str | None = None,
    equation: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register a function that returns a Recipe (or a probe) under its name or `key`."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        name = key or build.__name__
        if name in METHODS.found:
            raise ValueError(f"two methods are called {name!r}: rename one")
        METHODS.found[name] = Method(name, area, paper, build, frozenset(laws), equation)
        return build

    return register


def methods(area: str | None = None) -> list[Method]:
    """Every registered method, or those of one area, by area and key."""
    found = [m for m in METHODS.values() if area is None or m.area == area]
    return sorted(found, key=lambda m: (m.area, m.key))


def find_method(key: str, area: str | None = None) -> Method:
    """The method of that key; ValueError with the nearest names if there is none in `area`."""
    known = {k: m for k, m in METHODS.items() if area is None or m.area == area}
    if key not in known:
        if key in METHODS and (verb := _VERBS.get(METHODS[key].area)):
            raise ValueError(
                f"{key!r} is a method of area {METHODS[key].area!r}: call corank.{verb}"
            )
        raise unknown("method" if area is None else f"{area} method", key, known)
    return known[key]


def find_factorization(key: str) -> Method:
    """The factorisation of that key; ValueError with the nearest names if there is none.

    It is of area "train", or of another one and obeys the laws of factorisations.
    """
    known = {k for k, m in METHODS.items() if m.area == "train" or "factorization" in m.laws}
    if key not in known:
        raise unknown("factorisation", key, known)
    return METHODS[key]


def _plain(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return "required"
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
