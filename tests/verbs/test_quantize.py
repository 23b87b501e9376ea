"""`corank.quantize` on whole models: bytes, budgets, what trains, what is written."""

import copy

import pytest
import torch

import corank
from corank.calibration.outputs import outputs
from corank.errors import SiteError
from corank.models import find_sites, read
from corank.operators import LowRank, Quantised, Signs
from corank.registry import METHODS

from .models import tiny_bert, tiny_llama, tiny_mlp, tokens, vectors

KEYS = [m.key for m in corank.methods("quantize") if {"quantises", "detaches"} & {*m.laws}]
TRAINED = ["qlora", "loftq", "lq_lora", "int21"]


def quick(key):
    """A small rank, and no minutes of healing."""
    recipe = METHODS[key].recipe({})
    options = {} if recipe.rank is None else {"rank": 4}
    if recipe.heal:
        options["heal_minutes"] = 0
    if "steps" in METHODS[key].parameters:
        options["steps"] = 2
    if key == "requant":  # BERT without a head has no loss of its own
        options["loss"] = lambda model, batch: model(**batch)[0].square().mean()
    return options


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert], ids=["llama", "bert"])
@pytest.mark.parametrize("key", KEYS)
def test_every_method_quantises_a_whole_model(key, build, tmp_path):
    model = build()
    before = outputs(model, tokens(1))
    planned = corank.quantize(copy.deepcopy(model), key, bits=4, dry_run=True, **quick(key))
    report = corank.quantize(model, key, bits=4, data=tokens(), **quick(key))
    assert planned.totals["bytes_after"] == report.totals["bytes_after"]
    assert report.totals["model_bytes_after"] == sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())
    )
    codes = [q for s in find_sites(model) for q in read(model, s).modules()
             if isinstance(q, Quantised) and q.bits == 4]  # fmt: skip
    assert len(codes) == len(report.sites)
    assert not any(p.requires_grad for q in codes for p in q.parameters())
    for now, then in zip(outputs(model, tokens(1)), before, strict=True):
        assert (now - then).norm() < 0.3 * then.norm()
    corank.save(model, tmp_path)
    again = outputs(type(model).from_pretrained(tmp_path), tokens(1))
    assert all(map(torch.equal, again, outputs(model, tokens(1))))


@pytest.mark.parametrize("key", TRAINED)
def test_for_fine_tuning_the_factors_train_and_nothing_else(key):
    model = tiny_llama()
    corank.quantize(model, key, data=tokens(), **quick(key) | {"rank": 2})
    factors = {id(p) for m in model.modules() if isinstance(m, LowRank) for p in m.parameters()}
    assert factors == {id(p) for p in model.parameters() if p.requires_grad}
    model(**tokens(1)[0], labels=tokens(1)[0]["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("key", ["int21", "norm_tweaking"])
def test_what_trains_is_trained_towards_the_original(key):
    quantised, trained = tiny_llama(), tiny_llama()
    corank.quantize(quantised, key, bits=2, data=tokens(), **quick(key))
    rank = {"rank": 4} if "rank" in METHODS[key].parameters else {}
    report = corank.quantize(trained, key, bits=2, data=tokens(), heal_steps=48, **rank)
    losses = report.sections["healing"]["losses"]
    assert sum(losses[-6:]) < sum(losses[:6])  # the six batches, last and first
    moved = {
        type(trained.get_submodule(name.rpartition(".")[0])).__name__
        for name, p in trained.named_parameters()
        if not torch.equal(p, quantised.get_parameter(name))
    }
    assert moved == ({"LowRank"} if key == "int21" else {"LlamaRMSNorm"})


def test_a_budget_in_bytes_is_met_from_below_and_spent_on_ranks():
    reached = []
    for keep in (0.25, 0.35, 0.5):
        model = tiny_mlp()
        report = corank.quantize(model, "qera", bits=3, group=16, keep=keep, data=vectors())
        assert report.totals["bytes_after"] <= keep * report.totals["bytes_before"]
        reached.append(report.totals["bytes_after"])
    assert reached == sorted(set(reached))


def test_bits_are_chosen_site_by_site_under_one_budget():
    model = tiny_mlp()
    with torch.no_grad():
        model[0].weight *= 100  # its errors cost most, so it is to get more bits
    report = corank.quantize(model, "lq_lora", bits=[2, 3, 4, 8], rank=2, weighted=False, keep=0.31)
    first, second = (next(q for q in m.modules() if isinstance(q, Quantised) and q.bits < 9)
                     for m in (model[0], model[2]))  # fmt: skip
    assert report.totals["bytes_after"] <= 0.31 * report.totals["bytes_before"]
    assert first.bits > second.bits


@pytest.mark.parametrize(
    ("key", "more"), [("round_to_nearest", {}), ("lqer", {"scaled": False, "rank": 2})]
)
def test_several_bits_are_spent_where_they_help(key, more):
    models = original, same, mixed = [tiny_mlp() for _ in range(3)]
    with torch.no_grad():
        for model in models:
            model[0].weight *= 10
    fixed = corank.quantize(same, key, bits=4, group=8, **more)
    keep = fixed.totals["bytes_after"] / fixed.totals["bytes_before"]
    more = {k: v for k, v in more.items() if k != "rank"}  # the budget chooses ranks, too
    more |= {"bits": [2, 3, 4, 5, 6], "allocate": "greedy"}
    chosen = corank.quantize(mixed, key, group=8, keep=keep, **more)
    assert chosen.totals["bytes_after"] <= fixed.totals["bytes_after"]

    def error(model):
        pairs = [(model[i].weight.detach(), original[i].weight.detach()) for i in (0, 2)]
        return sum(float((now - then).square().sum()) for now, then in pairs)

    assert error(mixed) < 0.9 * error(same)


def test_what_cannot_be_is_refused_with_the_remedy():
    model = tiny_mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"method of area 'quantize': call corank\.quantize"):
        corank.compress(model, "gptq", keep=0.5)
    with pytest.raises(ValueError, match="bits must be 2, 3"):
        corank.quantize(model, "round_to_nearest", bits=9)
    with pytest.raises(ValueError, match="group must be at least 1"):
        corank.quantize(model, "round_to_nearest", group=0)
    with pytest.raises(ValueError, match="name one number of bits"):
        corank.quantize(model, "round_to_nearest", bits=[])
    with pytest.raises(ValueError, match="exactly one of keep="):
        corank.quantize(model, "round_to_nearest", bits=[2, 4])
    with pytest.raises(ValueError, match="needs calibration data"):
        corank.quantize(model, "gptq")
    with pytest.raises(ValueError, match="smallest reachable"):
        corank.quantize(model, "lqer", scaled=False, keep=0.01)
    with pytest.raises(ValueError, match="no ranks to round"):
        corank.quantize(model, "round_to_nearest", keep=0.5, round_to=8)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    corank.quantize(model, "round_to_nearest", targets=["0"])
    codes = model[0].operator.codes.clone()
    with pytest.raises(ValueError, match=r"^0 .*quantised already.*corank\.merge"):
        corank.quantize(model, "loftq", rank=2)
    assert torch.equal(model[0].operator.codes, codes)
    assert torch.equal(model[2].weight, before["2.weight"])


@pytest.mark.parametrize("key", [m.key for m in corank.methods("quantize") if "signs" in m.laws])
def test_signs_are_trained_and_stored_as_bits(key, tmp_path):
    models = original, started, trained = [tiny_llama() for _ in range(3)]
    told = corank.quantize(original, key, dry_run=True)
    corank.quantize(started, key, heal_minutes=0)
    report = corank.quantize(trained, key, data=tokens(), heal_steps=48)
    assert told.totals["bytes_after"] == report.totals["bytes_after"]
    wanted, start, end = ([y.flatten() for y in outputs(m, tokens(2))] for m in models)
    errors = [sum(float((a - b).norm()) for a, b in zip(found, wanted, strict=True))
              for found in (start, end)]  # fmt: skip
    assert errors[1] < errors[0]
    for model in (started, trained):
        parts = [part for s in find_sites(model) for part in read(model, s).modules()]
        assert any(isinstance(part, Quantised) and part.bits == 1 for part in parts)
        assert not any(isinstance(part, Signs) for part in parts)
    twins = zip(started.modules(), trained.modules(), strict=True)
    flipped = [not torch.equal(a.codes, b.codes) for a, b in twins if isinstance(a, Quantised)]
    assert any(flipped)
    corank.save(trained, tmp_path)
    again = outputs(type(trained).from_pretrained(tmp_path), tokens(1))
    assert all(map(torch.equal, again, outputs(trained, tokens(1))))


def test_bits_go_where_outputs_lose_most_for_their_size():
    def bits(scale, **settings):
        model = tiny_llama()
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.up_proj.weight.mul_(scale)
        report = corank.quantize(
            model, "round_to_nearest", bits=[2, 3, 4, 8], group=16, keep=0.2, **settings
        )
        return {row.name: row.bytes_after for row in report.sites}

    assert bits(64.0) == bits(1.0)
    assert bits(64.0, allocate="greedy") != bits(1.0, allocate="greedy")


def test_a_rank_that_a_weight_cannot_have_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^0: 64 is none of the sizes"):
        corank.quantize(tiny_mlp(), "lq_lora", bits=[2, 4], keep=0.5, data=vectors(),
                        weighted=False)  # fmt: skip


def test_steps_are_for_compress():
    with pytest.raises(ValueError, match=r"steps are corank\.compress's"):
        corank.quantize(tiny_mlp(), ["gptq"], data=vectors())


@pytest.mark.parametrize("method", ["qlora", "qera", "lq_lora", "svdquant", "realm", "eora"])
def test_a_method_s_own_rank_is_a_site_s_smaller_side_where_that_is_less(method):
    verb = corank.compress if method == "eora" else corank.quantize
    report = verb(tiny_llama(), method, data=tokens(), targets=["k_proj"])
    assert [site.rank for site in report.sites] == [16, 16]
    for asked in ({"rank": 17}, {"targets": {"k_proj": {"rank": 17}}}):
        with pytest.raises(SiteError, match=r"k_proj.*outside 1 to 16"):
            verb(tiny_llama(), method, data=tokens(), **{"targets": ["k_proj"]} | asked)
