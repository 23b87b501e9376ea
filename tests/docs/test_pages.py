"""The pages agree with the code and with each other, and the examples run."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import corank
from corank.registry import find_factorization, find_method

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
HEAVY = {"compress_a_language_model.py", "compress_an_encoder.py", "fine_tune.py"}
#: Pages written from results: they may be missing as long as nothing was measured.
MEASURED = {
    "board-adapt.md": ROOT / "benchmarks" / "results" / "adapt.json",
    "which-adapter.md": ROOT / "benchmarks" / "results" / "adapt.json",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        results = MEASURED.get(Path(target).name)
        if results is None or results.exists():
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_method_page_is_what_the_registry_says():
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["methods_page"]()
    assert (ROOT / "docs" / "methods.md").read_text() == page, "run python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_verbs_and_methods_that_pages_name_exist(page):
    text = page.read_text()
    for name in re.findall(r"corank\.([a-z_]+)\(", text):
        assert hasattr(corank, name), f"{page.name}: corank.{name}"
    own = set(re.findall(r"^def (\w+)\(", text, re.MULTILINE))
    for verb, find in (
        ("compress", lambda key: find_method(key, "compress")),
        ("adapt", lambda key: find_method(key, "adapt")),
        ("factorize", find_factorization),
    ):
        for key in re.findall(rf'corank\.{verb}\(\s*\w+,\s*"(\w+)"', text):
            if key not in own | {"auto"}:
                find(key)  # or raises with the nearest names


@pytest.mark.parametrize(
    "example",
    [pytest.param(e, marks=pytest.mark.slow) if e.name in HEAVY else e for e in EXAMPLES],
    ids=lambda e: e.name,
)
@pytest.mark.filterwarnings("default")
def test_examples_run(example, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(example)])
    known = dict(corank.registry.METHODS)
    try:
        runpy.run_path(str(example), run_name="__main__")
    finally:
        corank.registry.METHODS.found.clear()
        corank.registry.METHODS.found.update(known)
    assert capsys.readouterr().out.strip()
