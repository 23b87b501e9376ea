"""What the README says of adapters beside PEFT's holds for both."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import corank
from corank.adapters import activate, adapted, merge_adapters, unmerge_adapters

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
README = (Path(__file__).parents[2] / "README.md").read_text()
#: PEFT's types that put nothing beside a weight.
NOT_OF_WEIGHTS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
           "ADAPTION_PROMPT", "CPT", "CARTRIDGE", "SHADOW"}  # fmt: skip


def claimed(row):
    """The cells of corank and PEFT in a row of the README's table on adapters."""
    line = next(line for line in README.splitlines() if line.startswith(f"| {row}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def linear(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64, bias=False)).to(dtype)


def stir(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(torch.randn_like(parameter) / 8)
    return model


def with_peft(model, name="default", **options):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], **options), name)


def test_the_numbers_of_methods():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    ours, theirs = (int(re.search(r"\d+", cell)[0]) for cell in claimed("weight methods"))
    found = [m for m in corank.methods("adapt") if "setting" not in m.laws]
    assert len(found) > ours
    if peft.__version__.startswith("0.21."):
        assert len({t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING} - NOT_OF_WEIGHTS) == theirs


def test_unmerging():
    assert claimed("unmerging")[0].startswith("bit for bit")
    model, theirs = linear(torch.bfloat16), stir(with_peft(linear(torch.bfloat16)))
    corank.adapt(model, "lora")
    stir(model)
    before = adapted(model)["0"].base.dense().clone()
    layer = theirs.base_model.model[0]
    for _ in range(10):
        merge_adapters(model)
        unmerge_adapters(model)
        layer.merge()
        layer.unmerge()
    assert torch.equal(adapted(model)["0"].base.dense(), before)
    assert not torch.equal(layer.base_layer.weight, before)


@torch.no_grad()
def test_combining():
    assert "linear" in claimed("combining")[1]
    model = linear()
    base = model[0].weight.clone()
    for name in "ab":
        corank.adapt(model, "lora", name=name)
        stir(model)
    made = {}
    for name in "ab":
        activate(model, name)
        made[name] = model[0].weight - base
    activate(model, {"a": 0.7, "b": 0.3})
    torch.testing.assert_close(model[0].weight - base, 0.7 * made["a"] + 0.3 * made["b"])
    theirs = with_peft(linear(), "a")
    theirs.add_adapter("b", peft.LoraConfig(target_modules=["0"]))
    layer = stir(theirs).base_model.model[0]
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="linear")
    wanted = 0.7 * layer.get_delta_weight("a") + 0.3 * layer.get_delta_weight("b")
    assert (layer.get_delta_weight("both") - wanted).norm() > 0.1 * wanted.norm()


def test_methods_from_outside():
    from peft.tuners.lora import LoraConfig, LoraModel
    from peft.utils import register_peft_method

    assert claimed("a method of one's own")[1].startswith("refused")
    with pytest.raises(ValueError, match="Unknown PEFT type"):
        register_peft_method(name="mine", config_cls=LoraConfig, model_cls=LoraModel)


def test_what_a_training_run_remembers():
    assert "AdaLoRA" in claimed("resuming")[1]
    config = peft.AdaLoraConfig(target_modules=["0"], total_step=10, tinit=1, tfinal=2)
    theirs = peft.get_peft_model(linear(), config)
    theirs(torch.randn(2, 64)).square().mean().backward()
    theirs.base_model.update_and_allocate(2)
    assert theirs.base_model.rankallocator.ipt
    assert not [name for name in theirs.state_dict() if "ipt" in name]
    model = linear()
    corank.adapt(model, "adalora")
    control = corank.controller(model, total_steps=10)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    model(torch.randn(2, 64)).square().mean().backward()
    optimizer.step()
    state = optimizer.state_dict()["param_groups"][0]["corank_controller"]
    assert state["default"]["memory"]
