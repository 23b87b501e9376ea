"""How many numbers train on the papers' own models, as their tables print it (from memory)."""

from functools import cache

import pytest
import torch
from transformers import AutoModel, GemmaConfig, LlamaConfig, RobertaConfig

import corank

MODELS = {
    "llama 7b": LlamaConfig(),  # Llama-2-7B has the same sizes
    "llama 3 8b": LlamaConfig(intermediate_size=14336, num_key_value_heads=8, vocab_size=128256),
    "gemma 2b": GemmaConfig(
        hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256,
    ),
    "roberta base": RobertaConfig(),
    "roberta large": RobertaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
}  # fmt: skip

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
TWO, BERT_TWO = ["q_proj", "v_proj"], ["query", "value"]
BERT_FOUR = [*BERT_TWO, "attention.output.dense", "output.dense"]

#: Method, its parameters, model, targets, trained numbers as printed.
PRINTED = [
    ("lora", {"rank": 8}, "roberta base", BERT_TWO, "0.3M"),
    ("lora", {"rank": 8}, "llama 7b", TWO, "4.2M"),
    ("lora", {"rank": 64}, "llama 7b", ALL, "159.9M"),  # in VeRA's table
    ("rslora", {"rank": 36}, "llama 7b", ALL, "89.9M"),  # LoRA's of Bone's table
    ("pissa", {"rank": 128}, "llama 7b", ALL, "320M"),
    ("corda", {"rank": 128}, "llama 7b", ALL, "320M"),
    ("bone", {"rank": 64}, "llama 7b", ALL, "87.0M"),
    ("bone", {"rank": 64, "variant": "miss"}, "llama 7b", ALL, "87.0M"),
    ("fourierft", {}, "roberta base", BERT_TWO, "0.024M"),
    ("fourierft", {}, "llama 7b", TWO, "0.064M"),
    ("vera", {"rank": 1024}, "roberta base", BERT_TWO, "0.043M"),
    ("vera", {"rank": 256}, "roberta large", BERT_TWO, "0.061M"),
    ("lora_xs", {"rank": 25}, "roberta large", BERT_FOUR, "60.0K"),
    ("lora_xs", {"rank": 16}, "roberta large", BERT_FOUR, "24.6K"),
    ("moslora", {"rank": 16}, "llama 3 8b", FIVE, "28.4M"),
    ("svft", {"pattern": "plain"}, "gemma 2b", ALL, "194K"),
    ("svft", {"pattern": "banded", "off_diagonal": 16}, "gemma 2b", ALL, "6.35M"),
]

UNITS = {"K": 1e3, "M": 1e6}


@cache
def build(name):
    with torch.device("meta"):
        return AutoModel.from_config(MODELS[name])


def planned(name, key, targets, **given):
    model = build(name)
    return corank.adapt(model, key, targets=targets, dry_run=True, **given).totals["trainable"]


@pytest.mark.parametrize(
    ("key", "given", "model", "targets", "printed"),
    PRINTED,
    ids=[f"{row[0]}-{row[4]}" for row in PRINTED],
)
def test_trained_numbers_are_those_of_the_tables(key, given, model, targets, printed):
    number, unit = printed[:-1], printed[-1]
    decimals = len(number.partition(".")[2])
    found = planned(model, key, targets, **given) / UNITS[unit]
    assert f"{found:.{decimals}f}" == number


@pytest.mark.parametrize(("key", "percent"), [("lora", "0.83"), ("dora", "0.84")])
def test_shares_of_the_model_are_doras(key, percent):
    trained = planned("llama 7b", key, FIVE, rank=32)
    whole = sum(p.numel() for p in build("llama 7b").parameters()) + 32000 * 4096  # the head
    assert f"{100 * trained / (whole + trained):.2f}" == percent


def test_svfit_trains_a_sixteenth_of_loras_numbers():
    lora = planned("roberta base", "lora", BERT_TWO, rank=8)
    assert 16 * planned("roberta base", "svfit", BERT_TWO, rank=768) == lora


#: Counts by formula: modules of 4096 x 4096 in q and v of 32 layers.
FORMULAS = {
    "edora": ({"rank": 16}, 16**2 + 4096),
    "hra": ({"rank": 8}, 8 * 4096),
    "kasa": ({"rank": 8}, 8 * (8192 + 1)),
    "kore": ({"rank": 235}, 235 * 4096),
    "lift": ({"rank": 128}, 128 * 8192),
    "lora_fa": ({"rank": 8}, 8 * 4096),
    "lora_sb": ({"rank": 96}, 96**2),
    "loldu": ({"rank": 256}, 256 + 1),
    "map": ({"rank": 8}, 8 * 8192 + 2),
    "mora": ({"rank": 8}, 8 * 8192),
    "nola": ({"bases": 512}, 2 * 512),
    "pmss": ({"rank": 64}, 64**2),
    "soda": ({}, 4096 + 3 * 16**2),
    "sorsa": ({"rank": 128}, 128 * (8192 + 1)),
    "surm": ({"kind": "kronecker", "rank": 16}, 8192),
    "svdiff": ({}, 4096),
    "tera": ({"rank": 32}, 4 * 32),
    "wara": ({"rank": 8}, 8 * 4096),
}


@pytest.mark.parametrize("key", FORMULAS)
def test_trained_numbers_are_the_formulas(key):
    given, each = FORMULAS[key]
    assert planned("llama 7b", key, TWO, **given) == 64 * each
