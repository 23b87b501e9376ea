"""Codes put in the layout of the kernels that run them."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import corank
from corank.operators import (
    BlockDiagonal,
    FourBitPlanes,
    Polyadic,
    Quantised,
    RowSparse,
    TensorTrain,
    four_bit_planes,
)

from .models import tokens

pytestmark = pytest.mark.skipif(
    four_bit_planes._block() is None, reason="this processor has no such kernel"
)
WAYS = {
    "codes": ["round_to_nearest"],
    "8 bits": [{"round_to_nearest": {"bits": 8}}],
    "factors in codes": [{"svd": {"keep": 0.5}}, "round_to_nearest"],
    "smoothed": ["awq"],
    "repaired": [{"lqer": {"bits": 4, "rank": 4}}],
}


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).bfloat16().eval()


def kinds(model, kind):
    return [name for name, part in model.named_modules() if isinstance(part, kind)]


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_outputs_stay_and_no_codes_are_left(way):
    model = llama()
    corank.compress(model, WAYS[way], data=tokens())
    ids, before = tokens(1)[0]["input_ids"], copy.deepcopy(model)
    inside = kinds(model, Quantised)
    assert corank.for_inference(model) == {}
    assert inside
    assert kinds(model, FourBitPlanes) == inside
    assert not kinds(model, Quantised)
    exact = copy.deepcopy(before).float()(ids).logits
    found, wanted = ((m(ids).logits.float() - exact).norm() for m in (model, before))
    assert found < 1.2 * wanted


def test_codes_that_the_kernel_does_not_take_stay_and_are_named():
    model = llama()
    corank.quantize(model, "qlora", targets="mlp")
    left = corank.for_inference(model)
    assert len(left) == 6
    assert len(kinds(model, Quantised)) == 12  # scales are in codes too
    assert set(left.values()) == {"its codes stand for levels that are not evenly spaced"}


@pytest.mark.parametrize("structure", ["mpoe", "monarch", "compot"])
def test_codes_that_no_input_is_multiplied_with_stay(structure):
    model = llama()
    corank.compress(model, [structure, {"gptq": {"bits": 4, "group": 32}}], data=tokens(), keep=0.2)
    inner = (BlockDiagonal, Polyadic, RowSparse, TensorTrain)
    held = {id(q) for op in model.modules() if isinstance(op, inner) for q in op.modules()}
    stay = [q for q in model.modules() if isinstance(q, Quantised) and id(q) in held]
    assert stay
    assert corank.for_inference(model) == {}
    assert [q for q in model.modules() if isinstance(q, Quantised)] == stay


def test_it_runs_but_is_not_saved(tmp_path):
    model = llama()
    corank.quantize(model, "round_to_nearest")
    corank.for_inference(model)
    with pytest.raises(ValueError, match="save the model before for_inference"):
        corank.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
