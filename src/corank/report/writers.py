"""Reports as files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from .html import render_html
from .markdown import render_markdown
from .report import Report


def write(report: Report, path: Path) -> Path:
    """Write the report whole or not at all, in the form of the path's ending.

    Raises ValueError for an ending other than .html, .json and .md, OSError where the file cannot
    be written; an older file is then untouched.
    """
    forms: dict[str, Callable[[Report], str]] = {
        ".html": render_html,
        ".json": lambda r: json.dumps(r.to_json(), indent=2) + "\n",
        ".md": render_markdown,
    }
    render = forms.get(path.suffix.lower())
    if render is None:
        known = ", ".join(forms)
        raise ValueError(f"cannot write a report as {str(path)!r}: end its name in one of {known}")
    text = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
