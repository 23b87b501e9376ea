from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from corank.report import Report
from corank.report.plots import list_plots
from corank.report.sections import quantisation_wins
from corank.report.text import shorten
from tests.report.samples import make_report, make_sections


@pytest.mark.parametrize("layers", [1, 3, 40])
def test_text_fits_and_names_every_role(layers):
    report = make_report(layers)
    report.notes.append("word " * 60)
    text = report.table()
    assert max(map(len, text.splitlines())) <= 100
    for word in ("targeted sites", "whole model", "note:", "time: factorisation 1.5 s", "odd"):
        assert word in text
    if layers == 3:  # 12 sites, each with a line
        assert all(row.name in text for row in report.sites)
    if layers == 40:
        assert "q x 40" in text
        assert len(text.splitlines()) < 60


def test_a_long_name_is_cut_in_its_middle():
    assert shorten("abcdefghijklmnop", 10) == "abc...mnop"
    assert shorten("abc", 10) == "abc"
    report = make_report(1)
    report.sites[0].name = "deep." * 40 + "q_proj"
    assert max(map(len, report.table().splitlines())) <= 100


def test_an_empty_report_renders_everywhere(tmp_path):
    report = Report("analyze", "")
    assert report.table().strip() == "analyze"
    for ending in ("html", "md", "json"):
        assert report.save(tmp_path / f"r.{ending}").stat().st_size > 0


def test_quantisation_wins_only_within_the_bytes():
    rows = make_sections()["speed"]
    (warning,) = quantisation_wins(rows)  # int4 is better in all, but takes more bytes
    assert "int8" in warning
    assert "mean cosine (0.95 against 0.9)" in warning
    assert "speed" not in warning
    rows[2]["tokens_per_second"] = 4.0
    assert "speed (2.00 times" in quantisation_wins(rows)[0]
    rows[2]["bytes"] = 501
    assert quantisation_wins(rows) == []


def test_lower_perplexity_is_better():
    rows = make_sections()["speed"]
    rows[1]["fidelity"] = {"a: perplexity": 10.0}
    rows[2]["fidelity"] = {"a: perplexity": 12.0}
    assert quantisation_wins(rows) == []
    rows[2]["fidelity"] = {"a: perplexity": 9.0}
    assert "perplexity (9 against 10)" in quantisation_wins(rows)[0]


def test_json_holds_everything(tmp_path):
    report = make_report()
    path = report.save(tmp_path / "deep" / "r.json")
    assert json.loads(path.read_text()) == report.to_json()


def test_markdown_has_a_row_per_site(tmp_path):
    report = make_report()
    report.notes.append("a | b")
    text = report.save(tmp_path / "r.md").read_text()
    assert all(text.count(f"`{row.name}`") == 1 for row in report.sites)
    assert "a \\| b" in text
    assert "**quantisation wins here" in text


class _Page(HTMLParser):
    """Tags opened and closed, ids, and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scopes = 0

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[k] for k in ("href", "src") if k in values]
        self.scopes += tag == "th" and "scope" in values
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_and_needs_nothing_else(tmp_path):
    text = make_report().save(tmp_path / "r.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "script" not in page.seen
    assert "http" not in text
    assert "@import" not in text
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert page.seen.count("th") == page.scopes
    assert page.seen.count("table") == page.seen.count("caption")
    assert "a &lt;note&gt; &amp; more" in text
    assert "prefers-color-scheme: dark" in text
    assert page.seen.count("svg") == 6  # allocation, error, spectra, healing, fidelity, speed


def test_no_text_is_taken_for_markup():
    report = make_report()
    report.sites[0].name = report.sites[0].role = "<b>"
    report.parameters = {"<b>": "<b>"}
    report.refused = {"<b>": "<b>"}
    report.sections["fidelity"][0] |= {"domain": "<b>", "unit": "<b>"}
    assert "<b>" not in report._repr_html_()


def test_plots_are_drawn_the_same_each_time_and_take_the_page_colours():
    first, second = list_plots(make_report()), list_plots(make_report())
    assert first == second
    for plot in first:
        assert "currentColor" in plot.svg
        assert "#010203" not in plot.svg
        assert 'role="img"' in plot.svg


def test_ranks_are_tabled_with_their_gaps():
    lines = make_report().table().splitlines()
    start = lines.index("Ranks")
    assert lines[start + 1].split() == ["site", "stable", "90"]
    assert lines[start + 3].split() == ["x", "1.25", "2"]
    assert lines[start + 4].split() == ["y", "3.5", "-"]


def test_sections_that_are_missing_are_left_out():
    report = make_report()
    report.sections = {}
    assert [plot.title for plot in list_plots(report)] == ["Allocation", "Error of each site"]


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.html, \.json, \.md"):
        make_report().save(tmp_path / "r.pdf")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_report().save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
