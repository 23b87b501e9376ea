from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

import corank
from corank.errors import FormatError
from corank.io import attach, load, save
from corank.io.record import FORMAT, read_header, seal
from corank.layers import lazy
from corank.models import densify, find_sites, install, is_rewritten, read
from corank.operators import Dense, LowRank, Operator, normal_float, quantise_codebook
from corank.plugin import register_with_transformers
from tests.io import tiny
from tests.models.families import FAMILIES, make

register_with_transformers()

MODELS = {
    "llama": (tiny.llama, "all-linear"),
    "llama tied": (tiny.llama, ["embed_tokens", "q_proj", "down_proj"]),
    "llama untied": (lambda: tiny.llama(tied=False), ["lm_head", "v_proj"]),
    "bert": (tiny.bert, "all"),
    "gpt2": (tiny.gpt2, "all"),
    "mixtral": (tiny.mixtral, "all-linear"),
    "mixtral experts": (tiny.mixtral, ["gate_up_proj.1"]),
}


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    return {k: v for f in folder.glob("*.safetensors") for k, v in read_header(f).items()}


def compressed(name: str) -> PreTrainedModel:
    make, targets = MODELS[name]
    model = make()
    tiny.compress(model, targets)
    return model


def edit(config: Path, change: Any, *, sealed: bool = False) -> None:
    entries = json.loads(config.read_text())
    skeleton = entries["quantization_config"]
    change(skeleton)
    entries["quantization_config"] = seal(skeleton) if sealed else skeleton
    config.write_text(json.dumps(entries))


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_as_the_same_function(name: str, tmp_path: Path) -> None:
    model = compressed(name)
    save(model, tmp_path / "m")
    again, info = type(model).from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(tiny.output(again), tiny.output(model), rtol=0, atol=1e-6)
    assert list(again.state_dict()) == list(model.state_dict())
    for (key, mine), theirs in zip(
        again.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), key
    numel = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in again.parameters()) == numel


@pytest.mark.parametrize("name", ["llama tied", "gpt2", "mixtral"])
def test_each_tensor_is_stored_once(name: str, tmp_path: Path) -> None:
    model = compressed(name)
    save(model, tmp_path / "m")
    elements = sum(torch.Size(entry["shape"]).numel() for entry in stored(tmp_path / "m").values())
    assert elements == sum(p.numel() for p in model.parameters())


def test_a_tied_operator_stays_one_object(tmp_path: Path) -> None:
    save(compressed("llama tied"), tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert again.lm_head.operator is again.model.embed_tokens.operator
    again.tie_weights()
    assert again.lm_head.operator is again.model.embed_tokens.operator
    site = next(s for s in find_sites(again, "all") if s.role == "embed")
    assert site.tied == ("lm_head",)
    before = tiny.output(again)
    densify(again, site)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    torch.testing.assert_close(tiny.output(again), before, rtol=0, atol=1e-5)


def test_leaves_shared_across_layers_stay_shared(tmp_path: Path) -> None:
    model = tiny.llama()
    sites = find_sites(model, ["q_proj"])
    basis = nn.Parameter(torch.randn(4, 32), requires_grad=False)
    for site in sites:
        install(model, site, LowRank(torch.randn(32, 4), basis))
    save(model, tmp_path / "m")
    assert sum(name.endswith("q_proj.operator.a") for name in stored(tmp_path / "m")) == 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    first, second = (layer.self_attn.q_proj.operator.a for layer in again.model.layers)
    assert first is second
    torch.testing.assert_close(tiny.output(again), tiny.output(model), rtol=0, atol=1e-6)


def test_shared_operators_and_their_packed_buffers_stay_shared(tmp_path: Path) -> None:
    model = tiny.llama()
    sites = find_sites(model, ["k_proj"])
    base = quantise_codebook(read(model, sites[0]).dense(), normal_float(4), group=16)
    for site in sites:
        install(model, site, base + LowRank(torch.randn(16, 2), torch.randn(2, 32)))
    save(model, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(tiny.output(again), tiny.output(model), rtol=0, atol=1e-6)
    paths = [path for path, m in model.named_modules() if m is base]
    assert len(paths) == 1
    twins = {id(m) for _, m in again.named_modules() if type(m) is type(base)}
    assert len(twins) == 1
    assert sum(name.endswith("codes") for name in stored(tmp_path / "m")) == 1


def test_dtypes_are_kept_or_follow_the_one_asked_for(tmp_path: Path) -> None:
    model = tiny.llama().to(torch.bfloat16)
    tiny.compress(model, ["q_proj"])
    wide = find_sites(model, ["v_proj"])[0]
    install(model, wide, Dense(read(model, wide).dense().float()))
    save(model, tmp_path / "m")
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    assert {torch.float32, torch.bfloat16} == set(dtypes.values())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert {n: p.dtype for n, p in again.named_parameters()} == dtypes
    asked = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float16)
    for name, parameter in asked.named_parameters():
        kept = dtypes[name] is torch.float32
        assert parameter.dtype is (torch.float32 if kept else torch.float16), name


def test_loading_trains_what_was_trainable(tmp_path: Path) -> None:
    model = compressed("llama")
    op = model.model.layers[1].mlp.up_proj.operator
    op.requires_grad_(True)
    save(model, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    trains = {n for n, p in again.named_parameters() if p.requires_grad and ".operator." in n}
    assert trains == {f"model.layers.1.mlp.up_proj.operator.{leaf}" for leaf in "ab"}
    assert again.model.norm.weight.requires_grad


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_maps_work(device_map: Any, tmp_path: Path) -> None:
    model = compressed("llama tied")
    save(model, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", device_map=device_map)
    torch.testing.assert_close(tiny.output(again), tiny.output(model), rtol=0, atol=1e-6)


def test_another_head_takes_the_body(tmp_path: Path) -> None:
    model = compressed("llama untied")
    save(model, tmp_path / "m")
    body = AutoModel.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(tiny.output(body), tiny.output(model.model), rtol=0, atol=1e-6)
    plain = compressed("bert")
    save(plain, tmp_path / "b")
    headed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(tiny.output(headed.bert), tiny.output(plain), rtol=0, atol=1e-6)


def test_shards_and_their_index(tmp_path: Path) -> None:
    model = compressed("llama")
    save(model, tmp_path / "m", max_shard_size="10KB")
    files = list((tmp_path / "m").glob("model-*.safetensors"))
    assert len(files) > 2
    again = load(tmp_path / "m")
    assert type(again) is type(model)
    torch.testing.assert_close(tiny.output(again), tiny.output(model), rtol=0, atol=1e-6)
    save(model, tmp_path / "m")  # over it: no stale shard or index stays
    names = {f.name for f in (tmp_path / "m").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["llama tied", "mixtral", "gpt2"])
def test_save_pretrained_works_after_loading_and_after_attaching(name: str, tmp_path: Path) -> None:
    model = compressed(name)
    save(model, tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m")
    again.save_pretrained(tmp_path / "peer")
    third = type(model).from_pretrained(tmp_path / "peer")
    torch.testing.assert_close(tiny.output(third), tiny.output(model), rtol=0, atol=1e-6)
    fresh = compressed(name)
    attach(fresh)
    fresh.save_pretrained(tmp_path / "peer2")
    third = type(model).from_pretrained(tmp_path / "peer2")
    torch.testing.assert_close(tiny.output(third), tiny.output(model), rtol=0, atol=1e-6)


def test_experts_remember_which_were_rewritten(tmp_path: Path) -> None:
    model = compressed("mixtral experts")
    save(model, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    sites = find_sites(model, "all")
    rewritten = [site.name for site in sites if is_rewritten(model, site)]
    assert [site.name for site in sites if is_rewritten(again, site)] == rewritten
    assert len(rewritten) == 2


def test_save_pretrained_writes_the_operators_of_that_moment(tmp_path: Path) -> None:
    save(compressed("llama"), tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    site = find_sites(again, ["o_proj"])[0]
    install(again, site, LowRank(torch.randn(32, 3), torch.randn(3, 32)))
    again.save_pretrained(tmp_path / "n")
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "n")
    assert third.model.layers[0].self_attn.o_proj.operator.rank == 3
    torch.testing.assert_close(tiny.output(third), tiny.output(again), rtol=0, atol=1e-6)


def test_a_merged_model_is_saved_plainly(tmp_path: Path) -> None:
    save(compressed("llama"), tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    before = tiny.output(model)
    for site in find_sites(model, "all"):
        densify(model, site)
    save(model, tmp_path / "m")
    entries = json.loads((tmp_path / "m" / "config.json").read_text())
    assert "quantization_config" not in entries
    assert not any("operator" in name for name in stored(tmp_path / "m"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(tiny.output(again), before, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "peer")
    assert "quantization_config" not in (tmp_path / "peer" / "config.json").read_text()


def test_a_loaded_model_is_ordinary(tmp_path: Path) -> None:
    save(compressed("llama"), tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.half().dtype is torch.float16
    assert model.float().dtype is torch.float32
    twin = copy.deepcopy(model)
    torch.testing.assert_close(tiny.output(twin), tiny.output(model))
    out = model.generate(tiny.IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert out.shape == (2, 9)


def test_no_decomposition_happens_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(compressed("mixtral"), tmp_path / "m")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a decomposition at load")

    for name in ("svd", "svdvals", "eigh", "qr", "cholesky"):
        monkeypatch.setattr(torch.linalg, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    AutoModelForCausalLM.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("family", ["gpt2", "t5", "clip"])
def test_weights_that_a_family_initialises_from_outside_are_left_alone(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make(family), FAMILIES[family].inputs()
    corank.compress(model, "modegpt", keep=0.5, data=[inputs])
    save(model, tmp_path / "m")

    def refuse(_: Operator) -> None:
        raise AssertionError("a matrix written down at load")

    with monkeypatch.context() as patch:
        patch.setattr(lazy, "dense_of", refuse)
        again = type(model).from_pretrained(tmp_path / "m")
    for mine, theirs in zip(again(**inputs).values(), model(**inputs).values(), strict=True):
        if isinstance(mine, Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "foreign"])
def test_damaged_tensor_files_are_refused(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save(compressed("llama"), folder, max_shard_size="20KB")
    file = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-64])
    elif damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "foreign":
        shutil.copy(sorted(folder.glob("*.safetensors"))[0], file)
    else:
        file.unlink()
    with pytest.raises((FormatError, OSError), match=file.name):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("key", ["modules", "files", "shared", "dtype", "corank"])
def test_an_edited_skeleton_is_refused(key: str, tmp_path: Path) -> None:
    save(compressed("llama tied"), tmp_path / "m")
    edit(tmp_path / "m" / "config.json", lambda skeleton: skeleton.update({key: {"x": "y"}}))
    with pytest.raises(FormatError, match="edited"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save(compressed("llama"), tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    edit(config, lambda skeleton: skeleton.update(format=FORMAT + 1), sealed=True)
    with pytest.raises(FormatError, match="upgrade corank"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_a_skeleton_of_another_model_is_refused(tmp_path: Path) -> None:
    save(compressed("llama"), tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    entries = json.loads(config.read_text())
    entries["num_hidden_layers"] = 1
    config.write_text(json.dumps(entries))
    with pytest.raises(FormatError, match=r"layers\.1"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    save(compressed("llama"), tmp_path / "m")

    def rename(skeleton: dict[str, Any]) -> None:
        next(iter(skeleton["modules"].values()))["operator"]["kind"] = "Novel"

    edit(tmp_path / "m" / "config.json", rename, sealed=True)
    with pytest.raises(FormatError, match="Novel"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_our_configuration_makes_no_model_smaller(tmp_path: Path) -> None:
    from corank.io.quantizer import CorankConfig

    tiny.llama().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"corank\.compress"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "plain", quantization_config=CorankConfig(format=FORMAT)
        )


def test_the_configuration_survives_transformers(tmp_path: Path) -> None:
    save(compressed("llama"), tmp_path / "m")
    before = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    AutoConfig.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "n")
    after = json.loads((tmp_path / "n" / "config.json").read_text())["quantization_config"]
    assert after == before == seal(before)


def test_every_operator_kind_is_rebuilt(tmp_path: Path) -> None:
    model = tiny.llama()
    site = find_sites(model, ["gate_proj"])[0]
    weight = read(model, site).dense().detach()
    codes: Operator = quantise_codebook(weight, normal_float(3), group=8)
    op = codes + 0.5 * LowRank(torch.randn(48, 2), torch.randn(2, 32), gate=torch.randn(2))
    install(model, site, op, bias=torch.randn(48))
    save(model, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert again.model.layers[0].mlp.gate_proj.bias is not None
    torch.testing.assert_close(tiny.output(again), tiny.output(model), rtol=0, atol=1e-6)
