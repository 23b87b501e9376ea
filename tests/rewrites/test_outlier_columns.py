"""Rounded inputs, and the columns of outliers that stay floats, on operators and whole models."""

import copy

import pytest
import torch

import corank
from corank.calibration.outputs import outputs
from corank.models import find_sites, install, read
from corank.operators import Dense, RoundedInputs, build, describe, is_linear
from tests.verbs.models import tiny_bert, tiny_llama, tokens


def test_a_row_of_inputs_is_rounded_to_its_own_steps():
    w = torch.randn(5, 7, dtype=torch.float64)
    op = RoundedInputs(Dense(w), 3)
    x = torch.tensor([[3.0, 0.4, 0.6, -1.6, 2.4, 0.0, -3.0], [0.0] * 7]).double()
    rounded = torch.tensor([[3.0, 0.0, 1.0, -2.0, 2.0, 0.0, -3.0], [0.0] * 7]).double()
    torch.testing.assert_close(op(x), rounded @ w.mT)
    torch.testing.assert_close(op(x / 7), rounded / 7 @ w.mT)
    assert torch.equal(op.dense(), w)
    assert not is_linear(op)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(op(x).sum(), x)
    torch.testing.assert_close(gradient, w.sum(0).expand(2, 7))
    again = build(describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    assert torch.equal(again(x), op(x))
    with pytest.raises(ValueError, match="bits must be 2, 3"):
        RoundedInputs(Dense(w), 9)


def test_groups_of_a_row_have_steps_of_their_own():
    w = torch.randn(5, 7, dtype=torch.float64)
    op = RoundedInputs(Dense(w), 3, group=4)
    x = torch.tensor([[3.0, 0.4, 0.6, -1.6, 0.6, 0.2, -0.3], [0.0] * 7]).double()
    rounded = torch.tensor([[3.0, 0.0, 1.0, -2.0, 0.6, 0.2, -0.4], [0.0] * 7]).double()
    rounded[0, 6] = -0.2  # -0.3 is midway between steps of 0.2: to the even one, -2 or -1
    found = op(x)
    other = rounded.clone()
    other[0, 6] = -0.4
    assert any(torch.allclose(found, candidate @ w.mT) for candidate in (rounded, other))
    again = build(describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    assert torch.equal(again(x), found)
    with pytest.raises(ValueError, match="group must be at least 1"):
        RoundedInputs(Dense(w), 4, group=0)


@pytest.mark.parametrize("bits", [0, 1, 9, True])
def test_bits_that_inputs_cannot_have_are_refused_at_once(bits):
    with pytest.raises(ValueError, match="inputs take 2 to 8 bits"):
        corank.quantize(tiny_llama(), "svdquant", activation_bits=bits, rank=2, data=tokens())


def test_svdquant_rounds_what_its_codes_read_after_smoothing_it(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        next(s for s in model.modules() if type(s).__name__.endswith("Norm")).weight[3] = 20.0
    original, data = copy.deepcopy(model), tokens()
    options = {"bits": 8, "group": 16, "rank": 2, "activation_bits": 4, "data": data}
    report = corank.quantize(model, "svdquant", **options)
    q = model.model.layers[0].self_attn.q_proj.operator
    (core,) = [part for part in q.modules() if isinstance(part, RoundedInputs)]
    assert (core.bits, core.group) == (4, 16)
    x = torch.randn(3, 32)
    low = q.dense() - core.dense() / q.operators[1].diagonal.reciprocal()
    torch.testing.assert_close(q(x), core(x * q.operators[1].diagonal) + x @ low.mT)
    assert report.totals["model_bytes_after"] == sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())
    )
    plain = copy.deepcopy(original)
    corank.quantize(plain, "round_to_nearest", bits=8, group=16)
    for site in find_sites(plain):
        install(plain, site, RoundedInputs(read(plain, site), 4, 16))
    wanted = outputs(original, data)
    errors = [
        sum(float((a - b).square().sum()) for a, b in zip(outputs(m, data), wanted, strict=True))
        for m in (model, plain)
    ]
    assert errors[0] < 0.5 * errors[1]  # smoothing and the low-rank branch spare the inputs
    corank.save(model, tmp_path)
    again = corank.load(tmp_path)
    for mine, theirs in zip(outputs(again, data), outputs(model, data), strict=True):
        assert torch.equal(mine, theirs)


def test_half_precision_holds_the_products_of_rounded_inputs():
    w, x = torch.full((3, 8), 100.0), torch.full((1, 8), 0.5)
    op = RoundedInputs(Dense(w.half()), 8)  # 127 * 8 * 100 is beyond float16, 0.5 * 8 * 100 is not
    torch.testing.assert_close(op(x.half()), (x @ w.mT).half())


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert], ids=["llama", "bert"])
def test_a_whole_model_keeps_its_outliers_and_is_stored(make, tmp_path):
    model = make()
    with torch.no_grad():  # one input of what the norm feeds, far above 6
        next(s for s in model.modules() if type(s).__name__.endswith("Norm")).weight[3] = 20.0
    wanted = outputs(model, tokens(1))
    original = copy.deepcopy(model)
    report = corank.quantize(model, "llm_int8", data=tokens())
    assert report.totals["model_bytes_after"] == sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())
    )
    now = outputs(model, tokens(1))
    for mine, exact in zip(now, wanted, strict=True):
        assert (mine - exact).norm() < 0.02 * exact.norm()
    all_codes = copy.deepcopy(original)
    corank.quantize(all_codes, "llm_int8", data=tokens(), threshold=1e9)
    errors = [sum(float((a - b).square().sum()) for a, b in zip(o, wanted, strict=True))
              for o in (now, outputs(all_codes, tokens(1)))]  # fmt: skip
    assert errors[0] < errors[1]
    corank.save(model, tmp_path)
    again = outputs(type(model).from_pretrained(tmp_path), tokens(1))
    assert all(map(torch.equal, again, now))


def test_what_cannot_be_is_refused():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"needs calibration data \(abs_max\)"):
        corank.quantize(model, "llm_int8")
    with pytest.raises(ValueError, match="threshold must be above 0"):
        corank.quantize(model, "llm_int8", data=tokens(), threshold=0.0)
    with pytest.raises(ValueError, match=r"embed_tokens.*no inputs that could be rounded"):
        corank.quantize(model, "llm_int8", data=tokens(), targets="all")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    corank.quantize(model, "llm_int8", data=tokens())
    with pytest.raises(ValueError, match="depends on the input"):
        corank.merge(model)
