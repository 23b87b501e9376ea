"""DSFormer on a whole model: the sparse factor trains straight through and is stored sparse."""

import torch

import corank
from corank.calibration.outputs import outputs
from corank.models import find_sites, read
from corank.operators import SemiStructured, Thinned

from .models import tiny_llama, tokens


def distance(model, wanted):
    pairs = zip(outputs(model, tokens(2)), wanted, strict=True)
    return sum(float((a - b).norm()) for a, b in pairs)


def parts(model, kind):
    found = (p for s in find_sites(model) for p in read(model, s).modules())
    return [part for part in found if isinstance(part, kind)]


def test_training_moves_coefficients_in_and_out_and_nears_the_original(tmp_path):
    started, trained = tiny_llama(), tiny_llama()
    wanted = outputs(started, tokens(2))
    told = corank.compress(tiny_llama(), "dsformer", keep=0.5, dry_run=True)
    corank.compress(started, "dsformer", keep=0.5, data=tokens(), heal_minutes=0)
    report = corank.compress(trained, "dsformer", keep=0.5, data=tokens(), heal_minutes=0.02)
    assert told.totals["bytes_after"] == report.totals["bytes_after"]
    assert distance(trained, wanted) < distance(started, wanted)
    for model in (started, trained):
        assert len(parts(model, SemiStructured)) == len(find_sites(model))
        assert not parts(model, Thinned)
    twins = zip(parts(started, SemiStructured), parts(trained, SemiStructured), strict=True)
    assert any(not torch.equal(a.places, b.places) for a, b in twins)
    corank.save(trained, tmp_path)
    again = type(trained).from_pretrained(tmp_path)
    assert all(map(torch.equal, outputs(again, tokens(1)), outputs(trained, tokens(1))))
