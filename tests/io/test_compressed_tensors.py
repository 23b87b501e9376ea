"""Codes in compressed-tensors' format, read back by that package and by transformers with it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import corank
from corank.errors import FormatError
from corank.models import find_sites, read
from tests.io.tiny import mixtral
from tests.verbs.models import tiny_bert, tiny_llama, tokens

FORMAT = "compressed-tensors"


def logits(model):
    with torch.no_grad():
        return model(**tokens(1)[0]).logits


def quantised(method="round_to_nearest", build=tiny_llama, **options):
    model = build()
    data = tokens() if method == "gptq" else None
    corank.quantize(model, method, data=data, **{"group": 16} | options)
    return model


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_package_decodes_the_very_matrices(bits, symmetric, tmp_path):
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    model = quantised("gptq", bits=bits, symmetric=symmetric)
    corank.save(model, tmp_path, format=FORMAT)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    stored = load_file(tmp_path / "model.safetensors")
    (group,) = config["config_groups"].values()
    scheme = quantization.QuantizationScheme.model_validate(group)
    packed = compressors.BaseCompressor.get_value_from_registry(config["format"])
    for site in find_sites(model):
        parts = {
            k.rpartition(".")[2]: v for k, v in stored.items() if k.startswith(f"{site.name}.")
        }
        assert site.name in group["targets"]
        assert torch.equal(packed.decompress(parts, scheme)["weight"], read(model, site).dense())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_the_same_function(symmetric, dtype, tmp_path):
    pytest.importorskip("compressed_tensors")
    model = quantised(
        bits=4, symmetric=symmetric, build=lambda: tiny_llama(tie_word_embeddings=True)
    )
    model = model.to(dtype)
    before = copy.deepcopy(model.state_dict())
    corank.save(model, tmp_path / "theirs", format=FORMAT)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert again.dtype == dtype
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    corank.save(model, tmp_path / "ours")  # the model in memory is corank's still
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits(again), logits(ours))


def test_biases_and_several_kinds_of_codes_are_kept(tmp_path):
    pytest.importorskip("compressed_tensors")
    model = quantised(bits=4, symmetric=True, targets=["mlp"],
                      build=lambda: tiny_llama(mlp_bias=True, attention_bias=True))  # fmt: skip
    corank.quantize(model, "round_to_nearest", bits=8, symmetric=True, targets=["q_proj"])
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.normal_()
    corank.save(model, tmp_path, format=FORMAT)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) == 2
    assert "model.layers.0.self_attn.k_proj" in config["ignore"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("round_to_nearest", {"bits": 3}, "q_proj: codes of 3 bits, not 2, 4 or 8"),
        ("round_to_nearest", {"group": 28}, "q_proj: groups of 28 that do not divide 32 inputs"),
        ("loftq", {"rank": 2}, "q_proj: it holds a Sum, not codes alone"),
        ("qlora", {"rank": 2}, "q_proj: it holds a Sum, not codes alone"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_site_by_site(method, options, why, tmp_path):
    model = quantised(method, **options)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FormatError, match=why) as error:
        corank.save(model, tmp_path / "m", format=FORMAT)
    assert str(error.value).count("_proj: ") == len(find_sites(model))
    assert not (tmp_path / "m").exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_is_no_uniformly_quantised_transformers_model_is_refused(tmp_path):
    mixed = quantised(bits=4, targets=["mlp"])
    corank.quantize(mixed, "round_to_nearest", bits=8, targets=["q_proj"])
    with pytest.raises(FormatError, match="2 kinds of codes, some with zero points"):
        corank.save(mixed, tmp_path, format=FORMAT)
    experts = quantised(build=mixtral, targets="attention")
    with pytest.raises(FormatError, match=r"0\.mlp\.experts: fused experts, which are read"):
        corank.save(experts, tmp_path, format=FORMAT)
    with pytest.raises(FormatError, match="it holds no codes"):
        corank.save(tiny_llama(), tmp_path, format=FORMAT)
    with pytest.raises(FormatError, match=r"embeddings\.word_embeddings: it is no nn\.Linear"):
        corank.save(quantised(build=tiny_bert, targets="all"), tmp_path, format=FORMAT)
    with pytest.raises(FormatError, match="for transformers models, not Sequential"):
        corank.save(nn.Sequential(nn.Linear(2, 2)), tmp_path, format=FORMAT)
    with pytest.raises(ValueError, match="format must be 'corank' or 'compressed-tensors'"):
        corank.save(tiny_llama(), tmp_path, format="gguf")


def test_a_full_disk_leaves_the_model_and_the_folder_as_they_were(tmp_path, monkeypatch):
    model = quantised(bits=4)
    corank.save(model, tmp_path / "m")
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(OSError, match=r"could not save to .*No space left"):
            corank.save(model, tmp_path / "m", format=FORMAT)
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before
    corank.save(model, tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
