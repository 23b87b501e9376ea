"""One matrix for the up and the down projection: shared in the model, its bytes and its file."""

import pytest
import torch

import corank
from corank.calibration.outputs import outputs
from corank.models import find_sites, read

from .models import tiny_bert, tiny_llama, tokens

KEY = "row_column_sharing"


def pairs(model):
    up, down = ([s for s in find_sites(model) if s.role == role] for role in ("up", "down"))
    return [tuple(read(model, s) for s in pair) for pair in zip(up, down, strict=True)]


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert])
def test_down_is_up_transposed_and_the_bytes_are_halved(build):
    model, before = build(), build()
    told = corank.compress(build(), KEY, dry_run=True)
    report = corank.compress(model, KEY, data=tokens(), heal_minutes=0)
    (up, down), *_ = pairs(model)
    assert torch.equal(down.dense(), up.dense().mT)
    assert next(up.parameters()) is next(down.parameters())
    saved = 2 * 4 * 32 * 48
    assert report.totals["bytes_before"] - report.totals["bytes_after"] == saved
    assert report.totals["bytes_after"] == told.totals["bytes_after"]
    for site in find_sites(model):
        if site.role not in ("up", "down"):
            assert torch.equal(read(model, site).dense(), read(before, site).dense())


def test_healing_keeps_them_one_and_the_file_too(tmp_path):
    model, started = tiny_llama(), tiny_llama()
    wanted = outputs(started, tokens(2))
    corank.compress(started, KEY, data=tokens(), heal_minutes=0)
    corank.compress(model, KEY, data=tokens(), heal_minutes=0.02)

    def distance(found):
        pairs = zip(outputs(found, tokens(2)), wanted, strict=True)
        return sum(float((a - b).norm()) for a, b in pairs)

    assert distance(model) < distance(started)
    corank.save(model, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for some in (model, loaded):
        assert all(torch.equal(down.dense(), up.dense().mT) for up, down in pairs(some))
    assert all(map(torch.equal, outputs(loaded, tokens(1)), outputs(model, tokens(1))))


def test_under_a_budget_the_pairs_that_lose_most_stay():
    model = tiny_llama()
    report = corank.compress(
        model, KEY, keep=0.93, allocate="greedy", data=tokens(), heal_minutes=0
    )
    shared = [torch.equal(down.dense(), up.dense().mT) for up, down in pairs(model)]
    assert sorted(shared) == [False, True]
    assert report.totals["bytes_after"] <= 0.93 * report.totals["bytes_before"]


def test_targets_without_a_pair_are_refused():
    with pytest.raises(ValueError, match="no up and down projection"):
        corank.compress(tiny_llama(), KEY, targets=["up_proj"], data=tokens(), heal_minutes=0)
