"""Steps in turn under one budget."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import corank
from corank.models import find_sites, read
from corank.operators import Quantised
from corank.verbs import turns

from ..methods.mixtures import mixture, text
from .models import tiny_llama, tiny_mlp, tokens, whole

CODES = {"gptq": {"bits": 4, "group": 16}}


def test_steps_are_the_verbs_in_turn():
    model, by_hand = tiny_llama(), tiny_llama()
    original, data = copy.deepcopy(model), tokens()
    report = corank.compress(model, [CODES, {"eora": {"rank": 3}}], data=data)
    corank.quantize(by_hand, "gptq", bits=4, group=16, data=data)
    last = corank.compress(by_hand, "eora", rank=3, data=data, original=original)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert report.totals["model_bytes_after"] == last.totals["model_bytes_after"] == whole(model)
    assert report.totals["model_bytes_before"] == whole(original)
    assert [step["step"] for step in report.sections["steps"]] == [
        "gptq(bits=4, group=16)", "eora(rank=3)",
    ]  # fmt: skip
    assert report.method == "gptq(bits=4, group=16) + eora(rank=3)"


@pytest.mark.parametrize(
    ("key", "said", "keep"),
    [
        ("eora", {"group": 16}, 0.6),  # nothing comes before that it could repair
        ("bitstack", {"rank": 2}, 0.5),  # its rank is not its size
    ],
)
def test_a_step_by_itself_is_the_method(key, said, keep):
    model, by_name = tiny_llama(), tiny_llama()
    corank.compress(model, [{key: said}], keep=keep, data=tokens())
    corank.compress(by_name, key, keep=keep, data=tokens(), **said)
    for name, value in by_name.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_repair_that_comes_first_has_codes_of_its_own_where_healing_follows():
    model = tiny_llama()
    report = corank.compress(
        model, [{"eora": {"group": 16}}], keep=0.6, data=tokens(), heal_steps=1
    )
    assert report.totals["bytes_after"] <= 0.6 * report.totals["bytes_before"]
    assert any(isinstance(part, Quantised) for part in model.modules())


@pytest.mark.parametrize(
    "steps",
    [
        [CODES, "eora"],  # the last step gets what is left
        ["svd_llm", {"eora": {"rank": 2}}],  # the first gets what the second will leave
    ],
)
def test_one_budget_is_met_from_below_and_spent(steps):
    model = tiny_llama()
    before, targeted = whole(model), 61440
    report = corank.compress(model, steps, keep=0.6, data=tokens(), allocate="greedy")
    assert report.totals["bytes_before"] == targeted
    most = before - targeted + int(0.6 * targeted)
    assert 0.93 * most <= whole(model) <= most
    assert report.totals["model_bytes_after"] == whole(model)


def test_steps_may_have_targets_of_their_own(tmp_path):
    model = tiny_llama()
    steps = [{"svd": {"targets": "attention", "keep": 0.4}}, {"gptq": {"targets": "mlp"}}]
    corank.compress(model, steps, data=tokens())
    kinds = {n: type(m.operator).__name__ for n, m in model.named_modules() if "operator" in dir(m)}
    assert {k for n, k in kinds.items() if "self_attn" in n} == {"LowRank"}
    assert all(isinstance(b.mlp.up_proj.operator, Quantised) for b in model.model.layers)
    corank.save(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens()[0]["input_ids"]
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_step_undoes_nothing_of_what_another_leaves_as_it_is():
    model = mixture()
    steps = [{"mobe": {"keep": 0.9, "steps": 5}}, {"svd": {"keep": 0.5, "targets": "attention"}}]
    report = corank.compress(model, steps, data=text())
    rewritten = [row.name for row in report.sites if row.bytes_after < row.bytes_before]
    assert any("self_attn" in name for name in rewritten)
    assert any("gate_up_proj" in name for name in rewritten)


@pytest.mark.parametrize("second", ["awq", {"svdquant": {"rank": 2}}])
def test_a_weight_that_reads_some_inputs_is_scaled_where_it_reads(second, tmp_path):
    model = tiny_llama()
    first = {"modegpt": {"keep": 0.6, "targets": "mlp"}}
    key, options = ("awq", {}) if second == "awq" else next(iter(second.items()))
    by_hand = copy.deepcopy(model)
    corank.compress(model, [first, {key: {**options, "bits": 8, "targets": "mlp"}}], data=tokens())
    corank.compress(by_hand, "modegpt", keep=0.6, targets="mlp", data=tokens())
    for mine, theirs in zip(find_sites(model, "mlp"), find_sites(by_hand, "mlp"), strict=True):
        made, wanted = read(model, mine).dense(), read(by_hand, theirs).dense()
        assert (made - wanted).norm() < 0.01 * wanted.norm()
    corank.save(model, tmp_path)
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path), tokens()[0]["input_ids"]
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_budget_is_found_though_bytes_jump_with_the_size():
    model, targeted = tiny_llama(), 61440
    before = whole(model)
    corank.compress(model, ["svd", CODES], keep=0.15, data=tokens())
    assert whole(model) <= before - targeted + int(0.15 * targeted)


def test_a_later_step_that_cannot_take_less_says_why():
    with pytest.raises(ValueError, match=r"smallest reached.*With less for directshare: .*matrix"):
        corank.compress(tiny_llama(), ["directshare", CODES], keep=0.2, data=tokens())


def test_healing_is_for_so_many_steps_and_the_same_again():
    made = []
    for _ in range(2):
        model = tiny_llama()
        report = corank.compress(model, ["svd"], keep=0.3, data=tokens(), heal_steps=5)
        assert len(report.sections["healing"]["losses"]) == 5
        made.append(model.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    plain = tiny_llama()
    assert "healing" not in corank.compress(plain, ["svd"], keep=0.3, heal_steps=0).sections
    assert any(not torch.equal(made[0][name], value) for name, value in plain.state_dict().items())


def test_healing_comes_last_and_towards_the_original():
    model = tiny_llama()
    report = corank.compress(model, ["svd"], keep=0.3, data=tokens(), heal_minutes=0.03)
    losses = report.sections["healing"]["losses"]
    assert min(losses) < losses[0]
    assert report.seconds["healing"] > 0


def test_the_same_seed_gives_the_same_model():
    made = []
    for _ in range(2):
        model = tiny_llama()
        steps = ["svd_llm", {"eora": {"rank": 2}}]
        corank.compress(model, steps, keep=0.5, data=tokens(), seed=3)
        made.append(model.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@pytest.mark.parametrize(
    ("steps", "settings", "message"),
    [
        ([], {"keep": 0.5}, "at least one step"),
        (["gptq", "svdd"], {"keep": 0.5}, "unknown method of compress or quantize 'svdd'.*'svd'"),
        (["lora"], {}, "unknown method of compress or quantize 'lora'"),
        ([{"gptq": {"bit": 4}}], {}, "unknown parameter of 'gptq' 'bit'.*'bits'"),
        ([{"svd_llm": {"kep": 0.5}}], {}, "unknown parameter of 'svd_llm' 'kep'.*'keep'"),
        ([["gptq"]], {}, "a step is a method's key"),
        (["onebit"], {}, "trains by itself"),
        (["gptq", "awq"], {}, r"awq would undo what gptq makes of model\.layers\.0"),
        (["gptq", "svd"], {"keep": 0.5}, "svd would undo what gptq makes.*structure first"),
        (["svd", {"fwsvd": {"keep": 0.5}}], {"keep": 0.5}, "would undo what svd makes"),
        (["svd"], {}, "how much is to stay of svd"),
        (
            [{"svd": {"targets": "mlp"}}, {"svd_llm": {"targets": "attention"}}],
            {"keep": 0.5},
            "one budget cannot size svd.* and svd_llm",
        ),
        ([CODES], {"size": "10KB"}, "sizes of their own and reach .* over the budget|is less than"),
        (["svd_llm", {"eora": {"rank": 16}}], {"keep": 0.3}, "below the smallest reached"),
        (
            ["modegpt", {"gptq": {"bits": 3}}, {"eora": {"rank": 2}}],
            {"keep": 0.2},
            "repairing it",
        ),
        (
            ["modegpt", {"awq": {"bits": 3}}, {"eora": {"rank": 2}}],
            {"keep": 0.2},
            "repairing it",
        ),
        (["svd"], {"keep": 0.5, "rank": 3}, "say rank in the step"),
        (["svd"], {"keep": 0.5, "dry_run": True}, "for one method"),
        (["gptq", "eora"], {"original": tiny_mlp()}, "original= is for one method"),
        (["svd"], {"keep": 0.5, "alpha": 1}, "'alpha': parameters of a step stand in the step"),
        (["svd"], {"keep": 0.5, "heal_minutes": 1, "data": None}, "healing needs data"),
        (["svd"], {"keep": 0.5, "heal_minutes": 1, "heal_steps": 1}, "by one of heal_minutes="),
        (["svd_llm"], {"keep": 0.5, "data": None}, "needs calibration data"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_it_was(steps, settings, message):
    model = tiny_llama()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        corank.compress(model, steps, **({"data": tokens()} | settings))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_an_error_in_the_middle_leaves_the_model_as_it_was(monkeypatch):
    model, calls = tiny_llama(), []
    before, real = copy.deepcopy(model), turns.shrink

    def fails_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return real(*arguments)

    monkeypatch.setattr(turns, "shrink", fails_second)
    with pytest.raises(OSError, match="No space left"):
        corank.compress(model, [CODES, {"eora": {"rank": 2}}], data=tokens())
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]


class OneStep:
    """Turns of one step that leaves the first layer so wide at a size."""

    free, free_is_last, steps = 0, False, ()

    def __init__(self, model, width):
        self.model, self.width, self.tried = model, width, []

    def roughly(self):
        return self

    def __call__(self, keep):
        width = self.width(keep)
        setattr(self.model, "0", torch.nn.Linear(100 * width, 100, bias=False))
        self.tried.append(width)
        return [width]


def test_the_best_of_the_tries_is_what_stays():
    model = tiny_mlp()
    sites = find_sites(model)
    jumps = OneStep(model, lambda keep: 10 if keep == 1 else 6 if keep > 0.52 else 4)
    rest = whole(model) - sum(p.numel() * 4 for p in model[0].parameters())
    reports = turns.meet(jumps, sites, rest + 5 * 40000, rest)
    assert jumps.tried[-1] == 6
    assert len(jumps.tried) == turns.TRIES
    assert reports == [4]
    assert model[0].in_features == 400


def test_a_size_is_found_below_sizes_that_all_store_the_same():
    model = tiny_mlp()
    sites = find_sites(model)
    flat = OneStep(model, lambda keep: 100 - int(keep < 1) if keep > 0.19 else int(100 * keep))
    rest = whole(model) - sum(p.numel() * 4 for p in model[0].parameters())
    reports = turns.meet(flat, sites, rest + 20 * 40000, rest)
    assert 5 <= reports[0] <= 20, flat.tried


def test_all_data_is_read_for_what_stays_and_little_while_a_size_is_looked_for(monkeypatch):
    model, by_hand, read_of_codes, real = tiny_llama(), tiny_llama(), [], turns.shrink
    data, first = tokens(), {}

    def watch(verb, model, method, params, options):
        if method == "gptq":
            read_of_codes.append((options.data.samples, first["keep"]))
        else:
            first["keep"] = options.keep
        return real(verb, model, method, params, options)

    monkeypatch.setattr(turns, "shrink", watch)
    corank.compress(model, ["svd_llm", CODES], keep=0.2, data=data)
    counts = [count for count, _ in read_of_codes]
    assert len(counts) > 2
    assert counts == [4] * (len(counts) - 1) + [24]
    corank.compress(by_hand, "svd_llm", keep=read_of_codes[-1][1], data=data)
    corank.quantize(by_hand, "gptq", bits=4, group=16, data=data)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
