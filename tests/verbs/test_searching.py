"""`method="auto"`: what it tries, by what it chooses, and that it says so."""

import copy
import re

import pytest
import torch

import corank
from corank.calibration import batches
from corank.errors import DataError
from corank.models import find_sites, read
from corank.verbs import mixing, searching, turns
from corank.verbs.candidates import BITS, candidates, needs_the_whole, sensed, widest
from corank.verbs.profiling import Tried, one_of_each
from corank.verbs.yardstick import Yardstick

from ..methods.mixtures import mixture, text
from .models import tiny_llama, tokens, whole

FEW = ["svd", "svd_llm", "round_to_nearest", ["gptq", {"eora": {"rank": 2}}]]


def test_what_is_kept_is_the_nearest_of_the_tried_on_the_tuning_data():
    model, held = tiny_llama(), tokens(seed=9)
    original = copy.deepcopy(model)
    report = corank.compress(
        model, "auto", keep=0.3, data=tokens(), tuning=held, among=FEW, finalists=3
    )
    tried = report.sections["tried"]["whole"]
    losses = {row["steps"]: row["loss"] for row in tried if row["failed"] is None}
    assert len(losses) >= 3
    best = min(losses, key=losses.get)
    assert report.method == f"auto: {best}"
    assert Yardstick(original, batches(held))(model) == pytest.approx(losses[best])
    assert whole(model) <= whole(original) - int(0.7 * 61440)
    assert report.totals["model_bytes_after"] == whole(model)
    assert report.seconds["search"] > 0


@pytest.mark.parametrize(("keep", "bits"), [(0.12, 2), (0.25, 6), (1.0, 8)])
def test_what_has_one_number_of_bits_is_tried_with_the_most_that_fit(keep, bits):
    model = tiny_llama()  # in float32: an eighth of its bytes are four bits, scales beside them
    sites = find_sites(model)
    ops = [read(model, site) for site in sites]
    most = int(keep * sum(op.bytes() for op in ops))
    assert widest(["signround"], sites, ops, most) == [{"signround": {"bits": bits}}]
    quantised = copy.deepcopy(model)
    report = corank.quantize(quantised, "signround", bits=bits, data=tokens(), steps=1)
    assert report.totals["bytes_after"] <= most
    for other in (["svd"], [{"signround": {"bits": 2}}], ["signround", "eora"]):
        assert widest(other, sites, ops, most) == other
    assert widest(["signround"], sites, ops, 100) == ["signround"]


def test_auto_tries_it_so():
    report = corank.compress(
        tiny_llama(), "auto", keep=0.25, data=tokens(), among=["svd", "signround"], finalists=1
    )
    tried = [row["steps"] for row in report.sections["tried"]["whole"]]
    assert "signround(bits=6)" in tried


def test_every_method_that_a_budget_can_size_is_a_candidate():
    found = candidates(None)
    assert ["svd_llm"] in found
    assert [{"gptq": {"bits": BITS}}] in found
    keys = {
        key
        for steps in found
        for step in steps
        for key in ([step] if isinstance(step, str) else step)
    }
    assert not {"onebit", "littlebit", "lora"} & keys  # they train by themselves, or adapt
    assert candidates(["gptq", ["svd", {"gptq": {"bits": 4}}]]) == [
        [{"gptq": {"bits": BITS}}],
        ["svd", {"gptq": {"bits": 4}}],
    ]
    with pytest.raises(ValueError, match="unknown method"):
        candidates(["no_such"])


def test_the_profile_says_what_the_whole_then_shows():
    model = tiny_llama()
    report = corank.compress(
        model, "auto", keep=0.3, data=tokens(), among=["svd", "round_to_nearest"], finalists=2
    )
    rows = {r["steps"]: r for r in report.sections["tried"]["profile"] if r["keep"] == 0.3}
    codes = "round_to_nearest(bits=[2, 3, 4, 6, 8])"
    assert 0 < rows[codes]["distance"] < rows["svd"]["distance"]
    assert sum(rows[codes]["errors"].values()) < sum(rows["svd"]["errors"].values())
    loss = {row["steps"]: row["loss"] for row in report.sections["tried"]["whole"]}
    assert loss[codes] < loss["svd"]
    assert set(rows["svd"]["errors"]) == {"q", "k", "v", "o", "gate", "up", "down"}


def test_roles_get_what_suits_them():
    model = tiny_llama()
    sites = corank.models.find_sites(model, ["q_proj", "up_proj"])
    size = {s.role: corank.models.read(model, s).bytes() for s in sites}
    tried = [
        Tried(["svd"], 0.5, 0.0, {"q": 1.0, "up": 9.0}, dict(size.items())),
        Tried(["gptq"], 0.5, 0.0, {"q": 9.0, "up": 1.0}, dict(size.items())),
        Tried(["awq"], 0.1, 0.0, {"q": 99.0, "up": 99.0}, {r: b // 5 for r, b in size.items()}),
    ]
    parts = mixing.mix(model, sites, tried, sum(size.values()))
    assert {tuple(p.steps): p.targets.count("up_proj") for p in parts} == {
        ("svd",): 0,
        ("gptq",): 2,
    }
    small = mixing.mix(model, sites, tried, int(0.3 * sum(size.values())))
    assert [p.steps for p in small] == [["awq"]]
    assert mixing.mix(model, sites, tried, 10) == []


def test_bits_are_also_spread_by_what_their_errors_do_to_the_outputs():
    model = tiny_llama()
    codes = {"gptq": {"bits": BITS, "group": 16}}
    report = corank.compress(model, "auto", keep=0.15, data=tokens(), among=["svd", codes])
    label = "gptq(bits=[2, 3, 4, 6, 8], group=16, allocate='sensitivity')"
    assert label in {row["steps"] for row in report.sections["tried"]["whole"]}
    assert sensed(["svd"]) is None
    assert sensed([{"gptq": {"bits": BITS, "allocate": "ilp"}}]) is None


@pytest.mark.parametrize("keep", [0.11, 0.13, 0.15, 0.18])
def test_mixtures_are_within_the_budget(keep):
    model = tiny_llama()
    most = whole(model) - 61440 + int(keep * 61440)
    codes = {"gptq": {"bits": BITS, "group": 16}}
    report = corank.compress(model, "auto", keep=keep, data=tokens(), among=[codes, "corank"])
    tried = report.sections["tried"]["whole"]
    assert all(row["bytes"] <= most for row in tried), (most, tried)


def test_a_size_that_is_missed_is_not_chosen(monkeypatch):
    model = tiny_llama()
    parts = [mixing.Part(["round_to_nearest"], 0.9, "all-linear")]
    monkeypatch.setattr(searching, "mix", lambda *_: parts)
    report = corank.compress(model, "auto", keep=0.1, data=tokens(), among=["svd_llm"], finalists=1)
    assert report.method == "auto: svd_llm"
    *_, missed = report.sections["tried"]["whole"]
    assert "over the budget" in missed["failed"]


def test_a_block_of_many_experts_stands_for_its_bytes_and_no_more(monkeypatch):
    model, seen = mixture(), []
    real = searching.mix
    monkeypatch.setattr(searching, "mix", lambda *args: seen.extend(args[2]) or real(*args))
    sites = corank.models.find_sites(model)
    targeted = sum(corank.models.read(model, site).bytes() for site in sites)
    few = {"mobe": {"steps": 5}}  # whose bases several experts share
    corank.compress(model, "auto", keep=0.6, data=text(), among=["svd", few], finalists=1)
    at = {t.label: sum(t.bytes.values()) for t in seen if abs(t.keep - 0.6) < 1e-3}
    assert set(at) == {"svd", "mobe(steps=5)"}
    assert all(0.5 * targeted < held <= 0.6 * targeted for held in at.values()), (at, targeted)


@pytest.mark.parametrize("shares", ["basis_sharing", "directshare", "mpoe", "subformer"])
def test_what_shares_between_blocks_is_done_to_all_of_them(shares):
    sites = corank.models.find_sites(tiny_llama(num_hidden_layers=4), "all")
    assert needs_the_whole([shares], sites)
    assert not needs_the_whole(["svd_llm", "gptq"], sites)
    assert not needs_the_whole(["mobe"], sites)  # there are no experts


def test_finalists_differ():
    report = corank.compress(
        tiny_llama(), "auto", keep=0.6, data=tokens(), among=[*FEW, "svd_llm", "gptq"], finalists=3
    )
    whole_model = report.sections["tried"]["whole"]
    tried = [row for row in whole_model if "sensitivity" not in row["steps"]]
    assert len({row["loss"] for row in tried}) == len(tried)
    assert "gptq(bits=[2, 3, 4, 6, 8])" in {row["steps"] for row in tried}


def test_structures_are_tried_in_codes_and_repairs_are_not(monkeypatch):
    monkeypatch.setattr(searching, "candidates", lambda among: [["svd"], [{"eora": {"rank": 2}}]])
    report = corank.compress(tiny_llama(), "auto", keep=0.6, data=tokens(), finalists=1)
    tried = [row["steps"] for row in report.sections["tried"]["profile"]]
    assert "svd + gptq(bits=8)" in tried
    assert not any(name.startswith("eora") and "gptq" in name for name in tried)


def test_roles_that_a_budget_leaves_as_they_are_have_no_part(monkeypatch):
    seen, real = [], searching.mix
    monkeypatch.setattr(searching, "mix", lambda *args: seen.extend(real(*args)) or list(seen))
    model = mixture()
    report = corank.compress(model, "auto", keep=0.9, data=text(), among=["submoe"], finalists=1)
    assert [part.targets.count("self_attn") for part in seen] == [0]
    assert [row["failed"] for row in report.sections["tried"]["whole"]] == [None, None]
    assert len(report.sites) == len(corank.models.find_sites(mixture()))


def test_a_block_stands_for_all():
    sites = corank.models.find_sites(tiny_llama(), "all")
    chosen = one_of_each(sites)
    assert {s.role for s in chosen} == {s.role for s in sites}
    assert {s.layer for s in chosen if s.layer is not None} == {1}


def test_the_choice_is_reproducible_and_healing_follows():
    made = []
    for _ in range(2):
        model = tiny_llama()
        corank.compress(model, "auto", keep=0.3, data=tokens(), among=FEW, finalists=2)
        made.append(model.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    report = corank.compress(
        tiny_llama(), "auto", keep=0.3, data=tokens(), among=["svd"], heal_minutes=0.02
    )
    assert report.sections["healing"]["losses"]


def test_what_gives_no_numbers_is_not_chosen(monkeypatch):
    real = turns.shrink

    def breaks_svd(verb, model, method, *rest):
        report = real(verb, model, method, *rest)
        if method == "svd":
            model.model.layers[1].mlp.down_proj.operator.b.data.fill_(float("nan"))
        return report

    monkeypatch.setattr(turns, "shrink", breaks_svd)
    model = tiny_llama()
    report = corank.compress(
        model, "auto", keep=0.3, data=tokens(), among=["svd", "svd_llm"], finalists=2
    )
    assert {*re.findall(r"svd\w*", report.method)} == {"svd_llm"}
    failed = [row["failed"] for row in report.sections["tried"]["profile"] if row["steps"] == "svd"]
    assert "not finite" in failed[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "compares compositions on data"),
        ({"data": tokens(count=1)}, "cannot be split: give tuning="),
        ({"keep": 0.001}, "no candidate applies|is below the smallest"),
        ({"keep": None}, "exactly one of keep= .* and size="),
        ({"among": ["svdd"]}, "did you mean 'svd'"),
        ({"among": ["onebit"]}, "trains by itself"),
        ({"among": ["ere"]}, "'ere' stores what fine-tuning changed"),
        ({"dry_run": True, "data": None}, "dry_run= is for one method"),
        ({"rank": 3, "keep": None}, "rank= is for one method"),
        ({"original": tiny_llama()}, "original= is for one method"),
        ({"statistics": "file"}, "statistics= is of one method"),
        ({"finalists": 0}, "finalists=0: at least one"),
        ({"amongst": ["svd"]}, "unknown parameter of 'auto' 'amongst': did you mean 'among'"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_it_was(settings, message):
    model = tiny_llama()
    before = copy.deepcopy(model)
    common = {"keep": 0.5, "data": tokens(), "among": ["svd"]}
    with pytest.raises((ValueError, DataError), match=message):
        corank.compress(model, "auto", **(common | settings))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_what_gives_no_numbers_is_never_chosen(monkeypatch):
    real = Yardstick.__call__

    def judge(self, model):
        broken = any(type(part).__name__ == "LowRank" for part in model.modules())
        return float("nan") if broken else real(self, model)

    monkeypatch.setattr(Yardstick, "__call__", judge)
    report = corank.compress(
        tiny_llama(), "auto", keep=0.3, data=tokens(), among=["svd", "round_to_nearest"]
    )
    assert "svd" not in report.method
    failed = {row["steps"] for row in report.sections["tried"]["profile"] if row["failed"]}
    assert failed == {"svd"}


def test_what_is_held_out_is_not_calibrated_on(monkeypatch):
    seen = {"calibrated": set(), "held": set()}

    def note(kind, data):
        seen[kind] |= {batch["input_ids"].data_ptr() for batch in data}

    class Noted(Yardstick):
        def __init__(self, original, held, keep=False):
            note("held", held)
            super().__init__(original, held, keep)

    real = searching.compose_parts
    monkeypatch.setattr(searching, "Yardstick", Noted)
    monkeypatch.setattr(
        searching,
        "compose_parts",
        lambda model, parts, options: (
            note("calibrated", options.data),
            real(model, parts, options),
        )[1],
    )
    data = tokens(count=20)
    corank.compress(tiny_llama(), "auto", keep=0.5, data=data, among=["svd"])
    assert len(seen["held"]) == 2
    assert len(seen["calibrated"]) == 18
    assert not seen["held"] & seen["calibrated"]
