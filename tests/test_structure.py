"""The shape of the source: which room may use which, and what a class may be."""

import abc
import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import corank

SOURCE = Path(corank.__file__).parent

#: Lowest first: a room may import from those before it.
ROOMS = [
    "version", "errors", "losses", "linalg", "operators", "layers", "cells", "models",
    "calibration", "metrics", "quantizers", "rewrites", "allocation", "probes", "control",
    "registry", "optim", "adapters", "healing", "report", "engine", "io", "plugin", "settings",
    "recipes", "training", "verbs", "cli", "__init__", "__main__",
]  # fmt: skip

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms of corank that a file imports from, wherever in the file."""
    depth = len(path.relative_to(SOURCE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            yield from names
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("corank."):
            yield node.module.split(".")[1]


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    room = room_of(path)
    for used in imported_rooms(path):
        assert ROOMS.index(used) <= ROOMS.index(room), f"{room} imports from {used}"


def classes():
    for module in pkgutil.walk_packages(corank.__path__, "corank."):
        if module.name.endswith("__main__"):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name:
                yield kind


def test_classes_are_abstract_or_final():
    for kind in classes():
        bases = [b for b in kind.__mro__[1:] if b.__module__.startswith("corank.")]
        for base in bases:
            assert (
                inspect.isabstract(base) or abc.ABC in base.__mro__ or issubclass(base, Exception)
            ), f"{kind.__name__} extends the concrete {base.__name__}"
            for name, member in vars(base).items():
                concrete = inspect.isfunction(member) and not getattr(
                    member, "__isabstractmethod__", False
                )
                if concrete and not name.startswith("__") and name != "extra_repr":
                    assert name not in vars(kind), (
                        f"{kind.__name__} overrides {base.__name__}.{name}"
                    )


def test_methods_are_recipes_only():
    for path in (SOURCE / "recipes").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)], path.name
    assert not [
        k
        for k in classes()
        if k.__module__.startswith("corank.recipes") and issubclass(k, nn.Module)
    ]


def test_importing_corank_loads_neither_transformers_nor_matplotlib():
    heavy = "('transformers', 'matplotlib', 'rich', 'torchao', 'datasets', 'sklearn')"
    code = f"import sys, corank; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_nothing_unpickles_or_trusts_remote_code():
    for path in FILES:
        text = path.read_text()
        for forbidden in ("pickle", "trust_remote_code=True", "weights_only=False", "eval("):
            spoken = text.replace(".eval(", "").replace("no pickle", "")
            assert forbidden not in spoken, f"{path.name}: {forbidden}"


@pytest.mark.parametrize("name", sorted(set(corank.__all__) - {"__version__"}))
def test_public_names_are_documented(name):
    assert inspect.getdoc(getattr(corank, name))
