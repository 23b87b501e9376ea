from __future__ import annotations

from pathlib import Path

from .table import lines


def test_the_page_of_families_is_what_is_found() -> None:
    page = Path(__file__).parents[2] / "docs" / "families.md"
    assert page.read_text().splitlines() == "\n".join(lines()).splitlines()
