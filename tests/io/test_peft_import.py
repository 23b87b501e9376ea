"""Adapters that PEFT saved compute here what they compute there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import corank
from corank.adapters import adapters
from corank.errors import FormatError, SiteError
from corank.io.peft_kinds import PEFT_TYPES
from tests.io import tiny
from tests.io.test_peft_export import Convolutions, biased, output, t5

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


def saved(make: Callable[[], nn.Module], config: Any, folder: Path, **saving: Any) -> Any:
    """PEFT's model, with every value of the adapter moved, and its folder."""
    torch.manual_seed(2)
    model = peft.get_peft_model(make(), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
            assert "base_layer.weight" not in name
    model.save_pretrained(folder, **saving)
    return model.eval()


def same_here(theirs: nn.Module, make: Callable[[], nn.Module], folder: Path) -> nn.Module:
    model = make()
    bare = output(model)
    corank.load_adapter(model, folder)
    torch.testing.assert_close(output(model), output(theirs), rtol=2e-5, atol=2e-5)
    assert (output(model) - bare).abs().max() > 1e-3
    return model


LORA: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 5},
    "rslora": {"use_rslora": True, "lora_alpha": 5},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "patterns": {"rank_pattern": {"layers.0.*q_proj": 2}, "alpha_pattern": {"v_proj": 7}},
    "all linear": {"target_modules": "all-linear"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


def untied() -> nn.Module:
    return tiny.llama(tied=False)


@pytest.mark.parametrize("name", LORA)
def test_lora_and_its_variants(name: str, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj", "v_proj"], "r": 4} | LORA[name]
    theirs = saved(untied, peft.LoraConfig(**options), tmp_path / "a")
    model = same_here(theirs, untied, tmp_path / "a")
    held = adapters(model)["default"]
    assert held.method == {"rslora": "rslora", "dora": "dora"}.get(name, "lora")
    assert {n for n, p in model.named_parameters() if p.requires_grad}
    corank.controller(model)
    corank.save_adapter(model, tmp_path / "b", format="peft")
    again = peft.PeftModel.from_pretrained(untied(), tmp_path / "b").eval()
    torch.testing.assert_close(output(again), output(theirs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, biased, t5], ids=lambda m: m.__name__)
def test_families(make: Any, dora: bool, tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules="all-linear", r=3, use_dora=dora)
    same_here(saved(make, config, tmp_path / "a"), make, tmp_path / "a")


@pytest.mark.parametrize("targets", [["gate_up_proj", "down_proj"], ["down_proj"]])
def test_fused_experts(targets: list[str], tmp_path: Path) -> None:
    parameters = [f"mlp.experts.{name}" for name in targets]
    config = peft.LoraConfig(target_modules=["q_proj"], target_parameters=parameters, r=3)
    theirs = saved(tiny.mixtral, config, tmp_path / "a")
    same_here(theirs, tiny.mixtral, tmp_path / "a")


def test_modules_to_save_and_biases(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["pooler.dense"], bias="all")
    theirs = saved(tiny.bert, config, tmp_path / "a")
    model = same_here(theirs, tiny.bert, tmp_path / "a")
    assert "pooler.dense.weight" in adapters(model)["default"].also
    pooled = model(tiny.IDS).pooler_output
    torch.testing.assert_close(pooled, theirs(tiny.IDS).pooler_output)
    corank.adapters.delete(model, "default")
    torch.testing.assert_close(model(tiny.IDS).pooler_output, tiny.bert()(tiny.IDS).pooler_output)


def test_another_head(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"], r=2)
    theirs = saved(tiny.llama, config, tmp_path / "a")
    inner = tiny.llama().model
    corank.load_adapter(inner, tmp_path / "a")
    expected = theirs.get_base_model().model(tiny.IDS)[0]
    torch.testing.assert_close(inner(tiny.IDS)[0], expected)


OTHERS: dict[str, Any] = {
    "loha": lambda: peft.LoHaConfig(target_modules=["q_proj", "v_proj"], r=3, alpha=5),
    "lokr": lambda: peft.LoKrConfig(target_modules=["q_proj", "v_proj"], r=2, alpha=5),
    "lokr both": lambda: peft.LoKrConfig(
        target_modules=["q_proj", "v_proj"], r=1, decompose_both=True, decompose_factor=4
    ),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=5),
    "fourierft": lambda: peft.FourierFTConfig(
        target_modules=["q_proj", "down_proj"], n_frequency=40, scaling=90.0, random_loc_seed=5
    ),
    "randlora": lambda: peft.RandLoraConfig(
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], r=5, randlora_alpha=9
    ),
    "randlora sparse": lambda: peft.RandLoraConfig(
        target_modules=["q_proj", "down_proj"], r=4, randlora_alpha=9, sparse=True
    ),
    "vblora": lambda: peft.VBLoRAConfig(
        target_modules=["q_proj", "v_proj", "down_proj"], r=3, num_vectors=9, vector_length=8,
        topk=3, init_vector_bank_bound=0.5,
    ),
    "hra": lambda: peft.HRAConfig(target_modules=["q_proj", "v_proj"], r=4),
    "miss": lambda: peft.MissConfig(target_modules=["q_proj", "down_proj"], r=4),
    "miss uneven": lambda: peft.MissConfig(target_modules=["q_proj", "v_proj"], r=5),
    "ia3": lambda: peft.IA3Config(
        target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "adalora": lambda: peft.AdaLoraConfig(
        target_modules=["q_proj", "v_proj"], init_r=4, target_r=2, lora_alpha=9, total_step=9,
        tinit=1, tfinal=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_types(name: str, tmp_path: Path) -> None:
    theirs = saved(tiny.llama, OTHERS[name](), tmp_path / "a")
    model = same_here(theirs, tiny.llama, tmp_path / "a")
    corank.save_adapter(model, tmp_path / "b")
    again = tiny.llama()
    corank.load_adapter(again, tmp_path / "b")
    assert torch.equal(output(again), output(model))


BASES = ["fourierft", "randlora", "vblora"]


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2], ids=lambda m: m.__name__)
def test_bases_in_families(name: str, make: Any, tmp_path: Path) -> None:
    config = OTHERS[name]()
    config.target_modules = {"query", "dense"} if make is tiny.bert else {"c_attn", "c_proj"}
    same_here(saved(make, config, tmp_path / "a"), make, tmp_path / "a")


@pytest.mark.parametrize("name", BASES)
def test_bases_go_on_training(name: str, tmp_path: Path) -> None:
    theirs = saved(tiny.llama, OTHERS[name](), tmp_path / "a")
    model = same_here(theirs, tiny.llama, tmp_path / "a")
    theirs.set_adapter("default")
    counted = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counted
    control = corank.controller(model)
    optimizer = torch.optim.SGD(control.parameter_groups(1e-2))
    control.attach(optimizer)
    before = output(model)
    model(tiny.IDS)[0].square().mean().backward()
    optimizer.step()
    assert not torch.equal(output(model), before)


def test_what_is_not_all_there_is_refused(tmp_path: Path) -> None:
    few = peft.VBLoRAConfig(
        target_modules=["q_proj"], num_vectors=9, vector_length=8, save_only_topk_weights=True
    )
    saved(tiny.llama, few, tmp_path / "a")
    with pytest.raises(FormatError, match="save_only_topk_weights=False"):
        corank.load_adapter(tiny.llama(), tmp_path / "a")
    bare = peft.RandLoraConfig(target_modules=["q_proj"], r=5, save_projection=False)
    saved(tiny.llama, bare, tmp_path / "b")
    with pytest.raises(FormatError, match="save_projection=True"):
        corank.load_adapter(tiny.llama(), tmp_path / "b")


def test_every_type_of_the_table_is_tested() -> None:
    tested = {make().peft_type.value for make in OTHERS.values()} | {"LORA"}
    assert set(PEFT_TYPES) == tested


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "LoraConfig"])
@torch.no_grad()
def test_convolutions(kind: str, tmp_path: Path) -> None:
    targets = ["first"] if kind == "LoKrConfig" else ["first", "second"]
    config = getattr(peft, kind)(target_modules=targets, r=2)
    theirs = saved(Convolutions, config, tmp_path / "a")
    model = Convolutions()
    corank.load_adapter(model, tmp_path / "a")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), theirs(x), rtol=2e-5, atol=2e-5)


def test_a_lokr_that_is_no_kronecker_product_is_refused(tmp_path: Path) -> None:
    saved(Convolutions, peft.LoKrConfig(target_modules=["second"], r=2), tmp_path / "a")
    with pytest.raises(SiteError, match="no Kronecker"):
        corank.load_adapter(Convolutions(), tmp_path / "a")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changed_the_base_needs_converting(start: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=start)
    theirs = peft.get_peft_model(tiny.llama(), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "as-is")
    with pytest.raises(FormatError, match="path_initial_model_for_weight_conversion"):
        corank.load_adapter(tiny.llama(), tmp_path / "as-is")
    theirs.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    same_here(theirs.eval(), tiny.llama, tmp_path / "converted")


def test_a_tied_weight_of_which_one_place_is_adapted_is_refused(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["embed_tokens"], r=2)
    saved(tiny.llama, config, tmp_path / "a")
    with pytest.raises(SiteError, match=r"shared with lm_head.*Untie"):
        corank.load_adapter(tiny.llama(), tmp_path / "a")


def plain(folder: Path) -> dict[str, Any]:
    saved(tiny.llama, peft.LoraConfig(target_modules=["q_proj"], r=2), folder)
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"peft_type": None}, "None"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "repeats what repeats"),
        ({"alpha_pattern": {"(": 3}}, "no regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "cannot be rebuilt"),
        ({"use_dora": True}, "lacks its lora_magnitude_vector"),
    ],
)
def test_configurations_that_are_refused(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    config = plain(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | change))
    model = tiny.llama()
    with pytest.raises(FormatError, match=match):
        corank.load_adapter(model, tmp_path / "a")
    assert not adapters(model)
    assert not any(isinstance(m, corank.operators.Adapted) for m in model.modules())


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        (f"{Q}.lora_A.weight", None, "lacks its lora_A"),
        (f"{Q}.lora_A.weight", torch.zeros(2, 5), "one shape"),
        (f"{Q}.lora_A.weight", torch.zeros(3, 32), "cannot be rebuilt"),
        (f"{Q}.lora_A.weight", torch.zeros(2, 32).int(), "not floating"),
        (f"{Q}x.lora_A.weight", torch.zeros(2, 32), "which the model has not"),
        ("base_model.model.model.norm.lora_A.weight", torch.zeros(2, 32), "no weight"),
        ("base_model.model.lm_head.bias", torch.zeros(9), "nothing in the model"),
        (f"{Q}.base_layer.weight", torch.zeros(32, 32), "replaces the weight"),
    ],
)
def test_tensors_that_are_refused(name: str, tensor: Any, match: str, tmp_path: Path) -> None:
    plain(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors | ({} if tensor is None else {name: tensor}), file)
    model = tiny.llama()
    with pytest.raises(FormatError, match=match):
        corank.load_adapter(model, tmp_path / "a")
    assert not adapters(model)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    plain(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(FormatError, match="truncated"):
        corank.load_adapter(tiny.llama(), tmp_path / "a")
    file.unlink()
    with pytest.raises(FormatError, match="safetensors only"):
        corank.load_adapter(tiny.llama(), tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    with pytest.raises(FormatError, match="truncated"):
        corank.load_adapter(tiny.llama(), tmp_path / "a")
