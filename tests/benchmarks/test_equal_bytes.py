"""The board at equal bytes: its rows, one on a tiny model, how it is judged, its page."""

import pytest
import torch

import corank
from benchmarks.equal import any_size, claims, judging, more, page
from benchmarks.equal.measure import load, measure
from benchmarks.equal.rows import AUTO, SHARES, Row, list_healed, list_rows, list_seeds

from .test_board import Tiny


def row(label, share, value, **more):
    measures = {f"{domain}: mean cosine": value for domain in ("in", "out")}
    return {
        "key": f"{label}, {share}", "label": label, "share": share, "measures": measures,
        "method": label, "seed": 0, "reached": share, "cpu_seconds": 1.0, "speed": 1.0,
    } | more  # fmt: skip


def test_rows_are_of_all_shares_and_unlike():
    rows = list(list_rows())
    assert len({r.key for r in rows}) == len(rows)
    assert {r.share for r in rows} == set(SHARES)
    labels = {r.label for r in rows}
    assert {"svd_llm", AUTO, "svd_llm + gptq(bits=4)"} <= labels
    assert rows[0].label == "gptq(bits=[2, 3, 4, 6, 8])"


def test_a_row_is_made_in_bfloat16_and_within_its_bytes(tmp_path):
    task = Tiny()
    found = measure(task, Row(("svd_llm", {"gptq": {"bits": 8, "group": 16}}), 0.5), tmp_path)
    stored = [p for n, p in load(task).named_parameters() if "encoder" in n and p.ndim == 2]
    assert found["dense_bytes"] == sum(2 * p.numel() for p in stored)
    assert 0.4 < found["reached"] <= 0.5
    assert found["measures"]["in: mean cosine"] < 1
    assert load(task).dtype == torch.bfloat16
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_a_row_that_holds_more_is_refused(tmp_path, monkeypatch):
    real = corank.compress
    monkeypatch.setattr(corank, "compress", lambda *a, **k: real(*a, **k | {"keep": 0.6}))
    with pytest.raises(ValueError, match="more than 50% allows"):
        measure(Tiny(), Row(("svd",), 0.5), tmp_path)


@pytest.mark.parametrize(
    ("auto", "verdicts"),
    [(0.95, ["met", "met"]), (0.9, ["met", "not met"]), (0.8, ["not met", "not met"])],
)
def test_auto_is_judged_by_the_best_single_method_and_by_plain_codes(auto, verdicts):
    rows = [
        row("svd", 0.25, 0.5), row("gptq(bits=4)", 0.25, 0.9), row("a + b", 0.25, 0.99),
        row(AUTO, 0.25, auto, method="auto: x"), {"key": "dense", "measures": {}},
        {"key": "rom", "label": "rom", "share": 0.25, "error": "no"},
    ]  # fmt: skip
    found = judging.judge({"MiniLM": rows}, {"MiniLM": "mean cosine"})
    assert [line[3] for line in found] == [*verdicts, *verdicts]
    assert "gptq(bits=4)" in found[0][1]
    assert judging.judge({"MiniLM": rows[:3]}, {"MiniLM": "mean cosine"}) == []


@pytest.mark.parametrize(
    ("dense", "said"), [(0.89, "not met: the original has 0.890"), (1, "not met")]
)
def test_what_the_original_does_not_reach_is_said(dense, said):
    rows = [
        row("gptq", 0.4, 0.9), row(AUTO, 0.4, 0.88, method="auto: x"),
        {"key": "dense", "measures": {"in: mean cosine": dense, "out: mean cosine": dense}},
    ]  # fmt: skip
    found = judging.judge({"MiniLM": rows}, {"MiniLM": "mean cosine"})
    assert [line[3] for line in found] == [said, said]


def test_less_perplexity_is_better():
    assert judging.better("in: perplexity", 3.0, 4.0)
    assert not judging.better("in: mean cosine", 3.0, 4.0)
    rows = [{"measures": {"in: perplexity": v}} for v in (5.0, 4.0, 6.0)]
    assert judging.best(rows, "in: perplexity") is rows[1]


def test_the_page_says_what_was_measured_and_what_was_not():
    rows = [
        row("svd", 0.4, 0.5), row(AUTO, 0.4, 0.7, method="auto: svd + gptq"),
        row("gptq", 0.25, 0.6),
        {"key": "rom, 40%", "label": "rom", "share": 0.4, "error": "it cannot"},
        {"key": "dense", "measures": {"in: mean cosine": 1.0}},
    ]  # fmt: skip
    text, plots = page.render({"MiniLM": rows, "environment": {"torch": "x"}})
    assert text.index("### 40%") < text.index("### 25%")
    assert "| auto | svd + gptq | 0.700 |" in text
    assert "it cannot" in text
    assert plots["minilm-bytes.svg"].startswith("<?xml")
    assert "## reference LM" not in text


def test_a_claim_is_counted_where_both_domains_agree():
    rows = [row("blast", share, 0.5 + share) for share in (0.25, 0.4, 0.6)]
    rows += [row("svd", share, 0.9) for share in (0.25, 0.4, 0.6, 0.8)]
    rows[1]["measures"]["out: mean cosine"] = 0.95
    text = claims.render_claims({"MiniLM": rows}, {"MiniLM": "mean cosine"})
    assert "blast: 60%: 1.100; 40%: 0.900; 25%: 0.750" in text
    assert text.endswith("1 of 3 sizes, 1 in one domain |")
    assert claims.render_claims({"MiniLM": rows[:3]}, {"MiniLM": "mean cosine"}) == ""


def test_every_claim_is_of_rows_that_the_board_has():
    labels = {r.label for r in [*list_rows(), *list_healed()]}
    sides = {side for claim in claims.CLAIMS for side in (claim.first, claim.second)}
    assert sides <= labels


def test_speeds_are_shown_over_the_dense_model():
    def form(key, size, ratio):
        speeds = {
            str(batch): {f"{part} over dense": ratio for part in ("prefill", "decode")}
            for batch in (1, 16)
        }
        return {"key": key, "bytes": size, "speeds": speeds, "threads": 1,
                "rounds": 3, "numel": 9, "prompt": 8, "new": 4}  # fmt: skip

    rows = [form("codes", 25, 0.5), form("dense", 100, 1.0), form("theirs", 30, 0.7)]
    text = "\n".join(page.render_speed(rows, ["a note"]))
    assert text.index("| dense | 100% |") < text.index("| theirs | 30% |")
    assert "| codes | 25% | 0.50 | 0.50 | 0.50 | 0.50 |" in text
    assert "a note" in text
    assert page.render_speed([], []) == []


@pytest.mark.parametrize("steps", [("svd",), ("littlebit",), ("pela",)])
def test_a_healed_row_trains_for_its_steps(steps, tmp_path):
    found = measure(Tiny(), Row(steps, 0.5, healed=3), tmp_path)
    assert len(found["healing"]["losses"]) == 3
    assert found["key"].endswith("50%, seed 0, 3 steps")
    assert found["reached"] <= 0.5
    assert found["healing"]["tokens"] > 0


def test_healed_rows_stand_beside_what_they_were_and_seeds_beside_each_other():
    rows = [row("svd", 0.25, 0.5, seed=0), row("gptq", 0.25, 0.6, seed=0)]
    healing = {"tokens": 1000}
    healed = [row("svd", 0.25, 0.8, healing=healing), row("littlebit", 0.05, 0.4, healing=healing)]
    seeds = [row("svd", 0.25, 0.7, seed=1), row("svd", 0.25, 0.9, seed=2)]
    tables = {"MiniLM": rows, "MiniLM, healed": healed, "MiniLM, seeds": seeds}
    text, _ = page.render(tables)
    assert "| 25% | svd | 0.800 | 0.800 | 0.500 | 0.500 |" in text
    assert "| 5% | littlebit | 0.400 | 0.400 | - | - |" in text
    assert "| 25% | svd | 3 | 0.700 | 0.500 to 0.900 | 0.700 | 0.500 to 0.900 |" in text
    assert len({r.key for r in list_healed()}) == len(list(list_healed()))
    assert all(r.seed for r in list_seeds())


def test_what_is_not_tried_is_named():
    listed = [Row(("svd",), 0.25), Row(("svd",), 0.4), Row(("gptq",), 0.4), Row(("pela",), 0.4)]
    tried = [{"key": row.key} for row in listed[1:3]]
    assert more.coverage(tried, listed) == "40%: 2 of 3; 25%: 0 of 1. Not tried at any: pela."
    assert more.coverage(tried, listed[1:3]) == "40%: 2 of 2."


def test_a_claim_below_one_bit_is_of_healed_rows_of_that_size():
    rows = [
        row(label, share, 0.9 if label == "littlebit" else share)
        for label in ("littlebit", "kfac_svd + gptq(bits=4)") for share in (0.25, 0.05)
    ]  # fmt: skip
    text = claims.render_claims({"MiniLM, healed": rows}, {"MiniLM": "mean cosine"})
    assert "littlebit: 5%: 0.900" in text
    assert "25%" not in text
    assert text.endswith("1 of 1 sizes |")


def test_one_file_is_judged_step_by_step():
    rows = [
        {"share": share, "reached": share, "measures": {"in: perplexity": p, "out: perplexity": p}}
        for share, p in ((0.2, 50.0), (0.8, 25.0), (0.4, 30.0), (0.5, 31.0))
    ]
    tables = {"sizes": [*rows, {"share": 0.12, "error": "too small"}]}
    text = "\n".join(any_size.render_sizes(tables))
    assert text.index("| 80.0% | 25.000 | 25.000 |") < text.index("| 20.0% | 50.000 |")
    assert "12%: too small" in text
    assert any_size.claim_row(tables)[0][-3:] == ["80%: 25.000", "20%: 50.000", "2 of 3 steps"]
    assert any_size.claim_row({}) == any_size.render_sizes({}) == []
