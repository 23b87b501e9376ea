"""PEFT reads what is written for it, and computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

import corank
from corank.adapters import adapted
from corank.errors import SiteError
from corank.operators import (
    Base,
    BlockColumns,
    BlockRows,
    Dense,
    Diagonal,
    Hadamard,
    Kron,
    LowRank,
    Operator,
    Product,
    Reflections,
    Scaled,
    Sum,
    Transpose,
    low_rank_form,
    low_rank_update,
)
from tests.adapters.small import adapt, batches, loss, small_model, stir
from tests.io import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
METHODS = [m for m in corank.methods("adapt") if not {"plain_module", "setting"} & m.laws]


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48}
    config = T5Config(**sizes, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


def biased() -> nn.Module:
    """A LLaMA whose projections have biases."""
    model = tiny.llama()
    for module in list(model.modules()):
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            module.bias = nn.Parameter(torch.randn(module.out_features) / 9)
    return model


MODELS = {
    "bert": tiny.bert, "gpt2": tiny.gpt2, "llama": tiny.llama, "biased": biased, "t5": t5,
    "mixtral": tiny.mixtral,
}  # fmt: skip


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    more = {"decoder_input_ids": tiny.IDS} if isinstance(inner, T5ForConditionalGeneration) else {}
    return model(input_ids=tiny.IDS, **more)[0]


def same_in_peft(model: nn.Module, plain: nn.Module, folder: Path, **options: Any) -> Any:
    saved = corank.save_adapter(model, folder, format="peft", **options)
    theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
    torch.testing.assert_close(output(theirs), output(model), rtol=2e-5, atol=2e-5)
    return saved


@pytest.mark.parametrize("targets", ["all-linear", "all"])
@pytest.mark.parametrize("key", ["lora", "rslora", "dora", "pissa"])
@pytest.mark.parametrize("name", MODELS)
def test_peft_computes_the_same(name: str, key: str, targets: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, plain = MODELS[name](), MODELS[name]()
    plain.load_state_dict(model.state_dict())
    bare = output(model)
    corank.adapt(model, key, targets=targets, rank=2)
    stir(model)
    assert (output(model) - bare).abs().max() > 1e-2
    saved = same_in_peft(model, plain, tmp_path / "a")
    assert saved.error < 2e-6
    if targets == "all-linear" and (key != "dora" or name != "mixtral"):
        assert not saved.errors
        assert set(saved.ranks.values()) == {4 if key == "pissa" else 2}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
def test_every_method_is_written(method: Any, tmp_path: Path) -> None:
    model, _ = adapt(method)
    stir(model)
    saved = corank.save_adapter(model, tmp_path / "a", format="peft")
    plain = small_model()
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "a", autocast_adapter_dtype=False)
    x = batches(1)[0]
    expected = model(x)
    torch.testing.assert_close(theirs.eval()(x), expected, rtol=1e-6, atol=1e-6)
    assert saved.error < 1e-9
    again = small_model()
    corank.load_adapter(again, tmp_path / "a")
    torch.testing.assert_close(again(x), expected, rtol=1e-6, atol=1e-6)


def test_a_chosen_rank_reports_its_error(tmp_path: Path) -> None:
    model, _ = adapt(next(m for m in METHODS if m.key == "dora"))
    stir(model)
    weight = adapted(model)["0"]
    corank.adapters.activate(model, "default")
    update = weight.adapter("default").dense() - weight.base.dense()
    best = torch.linalg.svdvals(update)
    mixed = small_model()
    corank.adapt(mixed, "dora", targets=["0"], rank=8)
    corank.adapt(mixed, "lora", targets=["2"], rank=2, name="other")
    op = adapted(mixed)["0"].adapter("default")
    op.load_state_dict(weight.adapter("default").state_dict())
    adapted(mixed)["0"].add("default", Sum(Base((36, 16)), Dense(update)))
    saved = corank.save_adapter(mixed, tmp_path / "a", format="peft", rank=3)
    assert saved.ranks == {"0": 3}
    expected = float((best[3:].square().sum() / best.square().sum()).sqrt())
    assert saved.errors["0"] == pytest.approx(expected)
    assert saved.notes


def test_the_configuration_is_short_and_plain(tmp_path: Path) -> None:
    model = tiny.llama()
    corank.adapt(model, "lora", targets={"q_proj": {"rank": 3}, "v_proj": {}}, rank=2)
    corank.save_adapter(model, tmp_path / "a", format="peft", base="some/base")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == "some/base"
    assert config["r"] == config["lora_alpha"]
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["rank_pattern"]) == 2
    names = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    same_in_peft(model, tiny.llama(), tmp_path / "a")


def test_only_the_targeted_modules_are_adapted(tmp_path: Path) -> None:
    model = tiny.llama()
    corank.adapt(model, "lora", layers=[1], targets=["q_proj", "down_proj"], rank=2)
    stir(model)
    same_in_peft(model, tiny.llama(), tmp_path / "a")
    inner = nn.ModuleDict({"up": nn.Linear(4, 4), "in": nn.ModuleDict({"up": nn.Linear(4, 4)})})
    corank.adapt(inner, "lora", targets="re:^up$", rank=2)
    corank.save_adapter(inner, tmp_path / "b", format="peft")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["target_modules"] == "up"


def test_some_experts_of_different_ranks(tmp_path: Path) -> None:
    model = tiny.mixtral()
    targets = {"re:layers.0.*gate_up_proj.1$": {"rank": 3}, "re:layers.1.*down_proj.[02]$": {}}
    corank.adapt(model, "lora", targets=targets, rank=2)
    stir(model)
    same_in_peft(model, tiny.mixtral(), tmp_path / "a")
    again = tiny.mixtral()
    corank.load_adapter(again, tmp_path / "a")
    torch.testing.assert_close(output(again), output(model))


def test_modules_to_save_and_biases(tmp_path: Path) -> None:
    model = tiny.bert()
    corank.adapt(
        model, "lora", targets=["query"], rank=2, modules_to_save=["pooler.dense", "LayerNorm"]
    )
    held = corank.adapters.adapters(model)["default"]
    stir(model)
    bias = "encoder.layer.0.attention.self.query.bias"
    held.also += (bias,)
    with torch.no_grad():
        model.get_parameter(bias).add_(0.5)
    same_in_peft(model, tiny.bert(), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert "pooler.dense" in config["modules_to_save"]
    again = tiny.bert()
    corank.load_adapter(again, tmp_path / "a")
    torch.testing.assert_close(output(again), output(model))


class Convolutions(nn.Module):
    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 12, 3, padding=1, stride=2, dilation=dilation)
        self.second = nn.Conv1d(12, 8, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.second(self.first(input_ids).relu().flatten(2))


@pytest.mark.parametrize("key", ["lora", "dora", "pissa"])
@torch.no_grad()
def test_convolutions(key: str, tmp_path: Path) -> None:
    model = Convolutions().eval()
    corank.adapt(model, key, targets="all", rank=2)
    stir(model)
    corank.save_adapter(model, tmp_path / "a", format="peft")
    theirs = peft.PeftModel.from_pretrained(Convolutions(), tmp_path / "a").eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(theirs(x), model(x))
    again = Convolutions()
    corank.load_adapter(again, tmp_path / "a")
    torch.testing.assert_close(again(x), model(x))


def test_a_dilated_convolution_is_refused(tmp_path: Path) -> None:
    model = Convolutions(dilation=2)
    corank.adapt(model, "lora", targets=["first"], rank=2)
    with pytest.raises(SiteError, match="ignores dilation"):
        corank.save_adapter(model, tmp_path / "a", format="peft")
    assert not (tmp_path / "a").exists()


def test_a_trained_adapter_serves_in_peft(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32)
    corank.adapt(model, "pissa", rank=4)
    optimizer = torch.optim.Adam(corank.controller(model).parameter_groups(1e-2))
    for batch in batches(dtype=torch.float32):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    corank.save_adapter(model, tmp_path / "a", format="peft")
    theirs = peft.PeftModel.from_pretrained(small_model(dtype=torch.float32), tmp_path / "a").eval()
    x = batches(1, dtype=torch.float32)[0]
    torch.testing.assert_close(theirs(x), model(x))


def low(out: int, rank: int, into: int) -> LowRank:
    return LowRank(torch.randn(out, rank).double(), torch.randn(rank, into).double())


def dense(out: int, into: int) -> Dense:
    return Dense(torch.randn(out, into).double())


FORMS: dict[str, tuple[Any, int | None]] = {
    "low rank": (lambda: low(12, 2, 10), 2),
    "scaled": (lambda: Scaled(low(12, 2, 10), -0.5), 2),
    "sum": (lambda: Sum(low(12, 2, 10), Scaled(low(12, 3, 10), 2.0)), 5),
    "sum with a dense": (lambda: Sum(low(12, 2, 10), dense(12, 10)), None),
    "product": (lambda: Product(Diagonal(torch.randn(12).double()), low(12, 2, 10)), 2),
    "product around": (lambda: Product(dense(12, 9), low(9, 2, 7), dense(7, 10)), 2),
    "product of thin": (lambda: Product(dense(12, 3), dense(3, 3), dense(3, 10)), 3),
    "product cut between": (lambda: Product(dense(12, 2), low(2, 2, 9), dense(9, 10)), 2),
    "product of full": (lambda: Product(dense(12, 12), dense(12, 10)), None),
    "hadamard": (lambda: Hadamard(low(12, 2, 10), low(12, 3, 10)), 6),
    "hadamard of full": (lambda: Hadamard(low(12, 4, 10), low(12, 3, 10)), None),
    "kron": (lambda: Kron(dense(3, 2), low(4, 1, 5)), 2),
    "kron of two thin": (lambda: Kron(dense(3, 2), dense(4, 5)), 8),
    "kron of full": (lambda: Kron(dense(3, 2), dense(4, 3)), None),
    "transpose": (lambda: Transpose(low(10, 2, 12)), 2),
    "rows": (lambda: BlockRows(low(5, 2, 10), low(7, 3, 10)), 5),
    "columns": (lambda: BlockColumns(low(12, 2, 4), low(12, 3, 6)), 5),
    "columns with a dense": (lambda: BlockColumns(dense(12, 2), low(12, 3, 8)), 5),
    "gated": (
        lambda: LowRank(
            torch.randn(12, 3).double(),
            torch.randn(3, 10).double(),
            torch.randn(3).double(),
            torch.tensor([True, False, True]),
        ),
        3,
    ),
    "dense": (lambda: dense(12, 10), None),
}


@pytest.mark.parametrize("name", FORMS)
def test_low_rank_forms(name: str) -> None:
    make, rank = FORMS[name]
    op: Operator = make()
    pair = low_rank_form(op)
    whole = Sum(Base(op.shape), op)
    update = low_rank_update(whole)
    if rank is None:
        assert pair is None
        assert update is None
        return
    for factors in (pair, update):
        assert factors is not None
        assert factors[0].shape[1] == factors[1].shape[0] == rank
        torch.testing.assert_close(factors[0] @ factors[1], op.dense())


def test_an_update_of_full_rank_has_no_form() -> None:
    op = Sum(Base((6, 5)), low(6, 3, 5), low(6, 2, 5))
    assert low_rank_update(op) is None
    assert low_rank_update(Product(Base((6, 5)), dense(5, 5))) is None


def test_reflections_around_a_weight_move_it_by_a_low_rank() -> None:
    u, v = torch.randn(2, 9).double(), torch.randn(3, 8).double()
    base = Base((9, 8)).bind(dense(9, 8))
    left, right = Reflections(u), Reflections(v)
    for factors, rank in (
        ([base, right], 3), ([left, base], 2), ([left, base, right], 5),
        ([base, right, right], 6), ([left, left, base], 4),
    ):  # fmt: skip
        op = Product(*factors)
        pair = low_rank_update(op)
        assert pair is not None
        assert pair[0].shape[1] == rank
        torch.testing.assert_close(pair[0] @ pair[1], op.dense() - base.dense())


def test_a_half_precision_weight_rounds_no_update() -> None:
    base = Base((9, 8)).bind(Dense(torch.randn(9, 8).bfloat16()))
    reflections = Reflections(torch.randn(2, 8))
    turned = reflections.dense().double() - torch.eye(8)
    added = low(8, 2, 8)
    for op, right in (
        (Product(base, reflections), turned),
        (Sum(base, Product(base, added)), added.dense()),
    ):
        pair = low_rank_update(op)
        assert pair is not None
        expected = base.dense().double() @ right
        torch.testing.assert_close((pair[0] @ pair[1]).double(), expected, rtol=1e-5, atol=1e-5)
