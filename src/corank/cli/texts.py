"""Text that every Python brings along: docstrings, and prose of another kind."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: Paragraphs of these packages' docstrings calibrate; those of the others are held out.
CALIBRATION = (
    "asyncio", "collections", "ctypes", "distutils", "email", "encodings", "idlelib", "json",
    "lib2to3", "logging", "multiprocessing", "tkinter", "unittest",
)  # fmt: skip
HELD_OUT = (
    "concurrent", "curses", "dbm", "html", "http", "importlib", "re", "sqlite3", "tomllib",
    "urllib", "venv", "wsgiref", "xml", "xmlrpc", "zipfile", "zoneinfo",
)  # fmt: skip
_SHORTEST = 40  # characters: below this a paragraph hardly says anything


def read_docstrings(packages: tuple[str, ...]) -> list[str]:
    """The docstrings' paragraphs of packages of the standard library, each once, in file order.

    The sources are parsed, not imported. Raises ValueError where no sources are installed.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for package in packages:
        for file in sorted((library / package).rglob("*.py")):
            if "test" not in file.parts and "tests" not in file.parts:
                found |= dict.fromkeys(_docstrings(file))
    if not found:
        raise ValueError(f"{library} holds no sources of the standard library to read texts from")
    return list(found)


def spread(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, evenly from the first to the last."""
    if len(texts) <= count:
        return texts
    return [texts[i * len(texts) // count] for i in range(count)]


def read_prose() -> tuple[str, list[str]]:
    """Paragraphs that are no docstrings, and what they are.

    scikit-learn's descriptions of its data sets, or Python's own help topics without it.
    """
    try:
        from importlib.resources import files

        folder = files("sklearn.datasets.descr")
        pages = [entry.read_text(encoding="utf-8") for entry in sorted(folder.iterdir(), key=str)
                 if entry.name.endswith(".rst")]  # fmt: skip
        name = "data set descriptions"
    except ImportError:
        from pydoc_data.topics import topics

        pages, name = [topics[key] for key in sorted(topics)], "help topics"
    paragraphs = (" ".join(part.split()) for page in pages for part in page.split("\n\n"))
    found = [text for text in paragraphs if len(text) >= _SHORTEST and _is_prose(text)]
    return name, list(dict.fromkeys(found))


def _docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # sources kept broken on purpose, as lib2to3's
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(part.split())
                if len(text) >= _SHORTEST:
                    yield text


def _is_prose(text: str) -> bool:
    """Mostly words: no tables, rules or numbers."""
    return sum(c.isalpha() or c.isspace() for c in text) > 0.85 * len(text)
