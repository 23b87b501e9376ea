"""Weights in terms at any size: from the model, from its folder, as compressing to it would."""

import copy
import logging

import pytest
import torch

import corank
from corank.engine.summary import model_sizes
from corank.errors import FormatError
from corank.operators import Refined
from corank.registry import METHODS
from tests.methods.stats import unit

from . import models
from .models import tiny_mlp, tokens, vectors

OPTIONS = {"rank": 2, "terms": 8}


def tiny_llama():
    return models.tiny_llama(tie_word_embeddings=True)


def stacked(build=tiny_llama, data=tokens, **budget):
    model = build()
    targets = "all-linear" if build is tiny_mlp else ["q_proj", "v_proj", "down_proj"]
    budget = {"targets": targets} | (budget or {"keep": 1.0})
    corank.compress(model, "bitstack", data=data(2), **budget, **OPTIONS)
    return model


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    sums = [[m for m in model.modules() if isinstance(m, Refined)] for model in (one, other)]
    assert [op.errors for op in sums[0]] == [op.errors for op in sums[1]]


def sizes(model):
    """Three sizes between the smallest and all."""
    whole = model_sizes(model)["bytes"]
    terms = sum(op.bytes() for op in model.modules() if isinstance(op, Refined))
    return [f"{(whole - int(part * terms)) / 1000}KB" for part in (0.2, 0.45, 0.7)]


def at_most(model, size):
    assert 0.7 * float(size[:-2]) * 1000 < model_sizes(model)["bytes"] <= float(size[:-2]) * 1000


@pytest.mark.parametrize(("build", "data"), [(tiny_llama, tokens), (tiny_mlp, vectors)])
def test_a_size_from_the_folder_is_what_compressing_to_it_makes(build, data, tmp_path):
    model = stacked(build, data)
    corank.save(model, tmp_path / "all")
    builder = (build,) if build is tiny_mlp else ()
    for size in sizes(model):
        scratch = stacked(build, data, size=size)
        at_most(scratch, size)
        same(corank.load(tmp_path / "all", *builder, size=size), scratch)
        cut = copy.deepcopy(model)
        report = corank.cut(cut, size=size)
        assert report.totals["model_bytes_after"] == model_sizes(cut)["bytes"]
        same(cut, scratch)
    terms = {len(op.operators) for op in scratch.modules() if isinstance(op, Refined)}
    assert len(terms) > 1 or build is tiny_mlp  # greedy: not as many everywhere
    same(corank.load(tmp_path / "all", *builder), model)


def test_what_was_cut_can_be_saved_loaded_and_cut_again(tmp_path):
    from transformers import AutoModelForCausalLM

    model = stacked()
    large, _, small = sizes(model)
    corank.save(model, tmp_path / "all")
    cut = corank.load(tmp_path / "all", size=large)
    corank.save(cut, tmp_path / "cut")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    same(again, cut)
    x = tokens(1)[0]
    with torch.no_grad():
        assert torch.equal(again(**x).logits, cut(**x).logits)
    for one in (again, model):
        corank.cut(one, size=small)
    same(again, model)


def test_only_what_stays_is_read(tmp_path, caplog, monkeypatch):
    model = stacked(tiny_mlp, vectors)
    corank.save(model, tmp_path / "all")
    import safetensors

    read = []

    class Counting:
        def __init__(self, *arguments):
            self.file = safetensors_open(*arguments)

        def __enter__(self):
            self.held = self.file.__enter__()
            return self

        def __exit__(self, *reason):
            return self.file.__exit__(*reason)

        def get_tensor(self, name):
            read.append(name)
            return self.held.get_tensor(name)

    safetensors_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Counting)
    small = corank.load(tmp_path / "all", tiny_mlp, size=sizes(model)[2])
    assert sorted(read) == sorted(small.state_dict())
    monkeypatch.undo()
    whole = stacked()
    corank.save(whole, tmp_path / "llama")
    with caplog.at_level(logging.WARNING):
        corank.load(tmp_path / "llama", size=sizes(whole)[2])
    assert "UNEXPECTED" not in caplog.text


def test_a_longer_sum_is_nearer_and_its_errors_are_told():
    model = tiny_mlp()
    weight, data = model[0].weight.detach().clone(), vectors()
    corank.compress(model, "bitstack", keep=1.0, data=data, **OPTIONS)
    (op,) = (m for m in model[0].modules() if isinstance(m, Refined))
    scale = 1 / model[0].operator.operators[1].diagonal
    for count in (len(op.operators), 3, 1):
        op.shorten(count)
        lost = (weight * scale - op.dense()).detach().square().sum()
        assert op.errors[-1] == pytest.approx(float(lost), rel=1e-4)
    assert len(op.errors) == 1


def test_what_orders_the_terms_is_the_menus_error():
    recipe = METHODS["bitstack"].recipe(OPTIONS)
    given = unit(24, 16, recipe.family.needs)
    menu = recipe.family.menu(given)
    (op,) = recipe.family.build(given, menu.sizes[-1])
    (terms,) = (part for part in op.modules() if isinstance(part, Refined))
    assert list(terms.errors) == menu.errors


def test_bad_sizes_and_other_models_are_refused_and_change_nothing(tmp_path):
    model = stacked()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refused = {"1KB": "smallest reachable", "1M": "give bytes", "x": "cannot read"}
    for size, message in refused.items():
        with pytest.raises(ValueError, match=message):
            corank.cut(model, size=size)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="no weight in terms"):
        corank.cut(tiny_llama(), size="1MB")
    for both in ({}, {"size": "1MB", "keep": 0.5}):
        with pytest.raises(ValueError, match="exactly one of keep="):
            corank.cut(model, **both)
    corank.save(model, tmp_path / "all")
    with pytest.raises(ValueError, match="smallest reachable"):
        corank.load(tmp_path / "all", size="1KB")
    tiny_llama().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="no weights of corank's"):
        corank.load(tmp_path / "plain", size="1MB")
    config = tmp_path / "all" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"errors": [', '"errors": [0.5,', 1))
    with pytest.raises(FormatError, match="edited"):
        corank.load(tmp_path / "all", size="1MB")
    config.write_text(text)
    file = tmp_path / "all" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(FormatError, match="edited"):
        corank.load(tmp_path / "all", size=sizes(model)[0])
