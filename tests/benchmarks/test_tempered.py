"""What is better than the original: which rows are looked into, and what a temperature does."""

import copy

import pytest
import torch

from benchmarks.equal import tempered
from benchmarks.equal.rows import AUTO, Row, list_rows
from tests.verbs.models import tiny_llama, tokens

from .test_board import Tiny

MEASURE = "perplexity"


def row(label, share, out, within=9.0):
    key = next(r.key for r in list_rows() if r.label == label and r.share == share)
    measures = {"in: perplexity": within, "out: perplexity": out}
    return {"key": key, "label": label, "share": share, "measures": measures}


def test_only_what_beats_auto_and_the_original_is_looked_into():
    dense = {"key": "dense", "measures": {"in: perplexity": 9.0, "out: perplexity": 5.0}}
    rows = [
        dense, row(AUTO, 0.4, 6.0), row("qera(bits=[2, 3, 4, 6, 8])", 0.4, 4.0),
        row("svd", 0.4, 4.5), row(AUTO, 0.25, 6.0), row("svd", 0.25, 5.5),
        row(AUTO, 0.6, 3.0), row("svd", 0.6, 4.0, within=8.0),
    ]  # fmt: skip
    found = tempered.list_tempered({"m": rows}, "m", MEASURE)
    assert [(r.label, r.share) for r in found] == [("qera(bits=[2, 3, 4, 6, 8])", 0.4)]


class Words(Tiny):
    """A language model, "measured" by the size of its logits."""

    targets = "all-linear"

    def __init__(self):
        self.model = tiny_llama()

    def evaluate(self, model):
        with torch.no_grad():
            return {"out: perplexity": float(model(**tokens(1)[0]).logits.norm())}


def test_logits_are_divided_and_the_row_is_compressed():
    task = Words()
    before = copy.deepcopy(task.model.state_dict())
    original = tempered.temper(task, None)
    at = {t: v["out: perplexity"] for t, v in original["tempered"].items()}
    assert at["1.1"] == pytest.approx(at["1.0"] / 1.1, rel=1e-5)
    other = tempered.temper(task, Row(("svd",), 0.4))
    assert other["tempered"]["1.0"] != original["tempered"]["1.0"]
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    table = {"m, tempered": [other, original]}
    text = "\n".join(tempered.render_tempered(table, "m", MEASURE))
    assert text.index("| the original |  |") < text.index("| svd | 40% |")
    assert tempered.render_tempered({}, "m", MEASURE) == []
