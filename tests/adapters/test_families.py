"""Several adapters of different methods on the transformers families, together and by row."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import corank
from corank.adapters import activate, delete, disabled, merge_adapters, select, unmerge_adapters
from corank.errors import SiteError
from tests.io.tiny import gpt2, llama, mixtral

from .small import stir

HEADS = {"num_attention_heads": 4, "num_hidden_layers": 2}
IDS = torch.randint(0, 64, (4, 7), generator=torch.Generator().manual_seed(1))
PIXELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def bert():
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, **HEADS)
    return BertForMaskedLM(config)


def t5():
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def vit():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "image_size": 16, "patch_size": 4}
    return ViTForImageClassification(ViTConfig(**sizes, **HEADS, num_labels=3))


def output(model):
    if isinstance(model, ViTForImageClassification):
        return model(pixel_values=PIXELS.to(model.dtype)).logits
    labels = {"labels": IDS} if isinstance(model, T5ForConditionalGeneration) else {}
    return model(input_ids=IDS, **labels).logits


FAMILIES = [llama, bert, t5, gpt2, mixtral, vit]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
METHODS = {"lora": {"rank": 2}, "dora": {"rank": 2}, "vera": {}, "hra": {"rank": 2}}


@dtypes
@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
@torch.no_grad()
def test_methods_stand_at_one_site_together_and_by_row(make, dtype):
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    outs, state = {None: output(model)}, [t.clone() for t in model.state_dict().values()]
    for number, (method, params) in enumerate(METHODS.items()):
        everywhere = method in ("lora", "dora") and make is not t5
        targets = "all" if everywhere else "all-linear"
        corank.adapt(model, method, name=method, targets=targets, **params)
        stir(model, seed=number)
        outs[method] = output(model)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    names = ["lora", None, "hra", "dora"]
    with select(model, names):
        mixed = output(model)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], outs[name][row], **close)
    activate(model, dict.fromkeys(METHODS, 0.3))
    together = output(model)
    for kind in ("base", "wide"):
        merge_adapters(model, dtype=kind)
        assert torch.isfinite(output(model)).all()
        unmerge_adapters(model)
        assert torch.equal(output(model), together)
    with disabled(model):
        torch.testing.assert_close(output(model), outs[None], **close)
    for name in METHODS:
        delete(model, name)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state, strict=True))


def test_relative_positions_are_not_selected_by_row():
    model = t5()
    corank.adapt(model, "lora", rank=2, targets="all")
    refused = pytest.raises(SiteError, match=r"relative_attention_bias: .* once for all rows")
    with refused, select(model, ["default"] * 4):
        pass


@pytest.mark.parametrize("make", [llama, mixtral], ids=lambda make: make.__name__)
def test_a_selection_of_another_batch_is_refused(make):
    model = make()
    corank.adapt(model, "lora", rank=2)
    for names in (["default"] * 2, ["default"] * 28):
        wrong = pytest.raises(ValueError, match=f"{len(names)} adapters .* for a batch of 4")
        with wrong, select(model, names):
            output(model)
