"""Telling transformers how to read our folders, without importing it before the user does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import final

_HOST = "transformers.quantizers.auto"


def register_with_transformers() -> None:
    """Make `from_pretrained` know `quant_method: corank`: now, or once transformers is imported."""
    if getattr(sys.modules.get(_HOST), "get_hf_quantizer", None):
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    from .io import quantizer  # noqa: F401  (registers as it is imported)


@final
class _Finder(MetaPathFinder):
    """Finds one module as the others would, and registers when it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _HOST:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


@final
class _Registering(Loader):
    """The host's own loader, followed by the registration."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _Finder)]
        _register()

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)
