from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from corank.errors import FormatError, SiteError
from corank.io import load, save, stream
from corank.models import Site, find_sites, install, is_rewritten, read
from corank.operators import Dense, LowRank, Operator
from corank.plugin import register_with_transformers
from tests.io import tiny

register_with_transformers()


def sketch(name: str, matrix: Tensor, site: Site) -> LowRank:
    """A rank-4 randomised projection: its result hangs on the site's generator."""
    probe = torch.randn(matrix.shape[1], 4, generator=site.generator())
    q, _ = torch.linalg.qr(matrix.float() @ probe)
    return LowRank(q.to(matrix.dtype), (q.T @ matrix.float()).to(matrix.dtype))


def in_memory(model: PreTrainedModel, targets: Any, seed: int) -> PreTrainedModel:
    for site in find_sites(model, targets, seed):
        install(model, site, sketch(site.name, read(model, site).dense().detach(), site))
    return model


CASES: dict[str, tuple[Callable[[], PreTrainedModel], Any]] = {
    "llama": (tiny.llama, "all-linear"),
    "llama tied": (tiny.llama, ["embed_tokens", "o_proj"]),
    "llama untied": (lambda: tiny.llama(tied=False), ["lm_head"]),
    "bert": (tiny.bert, "all"),
    "gpt2": (tiny.gpt2, "all-linear"),
    "mixtral": (tiny.mixtral, "all-linear"),
    "mixtral experts": (tiny.mixtral, ["gate_up_proj.1", "down_proj.0"]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_a_stream_equals_compression_in_memory(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    make, targets = CASES[name]
    model = make().to(dtype)
    model.save_pretrained(tmp_path / "from", max_shard_size="20KB")
    numel = stream(
        tmp_path / "from", tmp_path / "to", sketch, targets=targets, seed=3, max_shard_size="6KB"
    )
    assert len(list((tmp_path / "to").glob("*.safetensors"))) > 1
    expected = in_memory(type(model).from_pretrained(tmp_path / "from"), targets, seed=3)
    again, info = type(model).from_pretrained(tmp_path / "to", output_loading_info=True)
    assert not any(info.values())
    assert list(again.state_dict()) == list(expected.state_dict())
    for key, value in expected.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    torch.testing.assert_close(tiny.output(again), tiny.output(expected), rtol=0, atol=1e-6)
    every = find_sites(expected, "all")
    assert [is_rewritten(again, s) for s in every] == [is_rewritten(expected, s) for s in every]
    sites = find_sites(expected, targets)
    assert numel == {site.name: read(expected, site).numel() for site in sites}


def test_the_small_files_come_along(tmp_path: Path) -> None:
    model = tiny.llama()
    model.save_pretrained(tmp_path / "from")
    (tmp_path / "from" / "tokenizer.json").write_text("{}")
    (tmp_path / "from" / "pytorch_model.bin").write_bytes(b"a pickle")
    stream(tmp_path / "from", tmp_path / "to", sketch)
    names = {f.name for f in (tmp_path / "to").iterdir()}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}


def test_a_tied_weight_stored_twice_is_rewritten_once(tmp_path: Path) -> None:
    model = tiny.llama()
    model.save_pretrained(tmp_path / "from")
    file = tmp_path / "from" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    calls = []

    def count(name: str, matrix: Tensor, site: Site) -> Operator:
        calls.append(name)
        return sketch(name, matrix, site)

    stream(tmp_path / "from", tmp_path / "to", count, targets=["embed_tokens"])
    assert calls == ["model.embed_tokens"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "to")
    assert again.lm_head.operator is again.model.embed_tokens.operator


def test_none_leaves_a_site_dense(tmp_path: Path) -> None:
    model = tiny.mixtral()
    model.save_pretrained(tmp_path / "from")
    numel = stream(tmp_path / "from", tmp_path / "to", lambda *_: None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "to")
    assert numel == {}
    torch.testing.assert_close(tiny.output(again), tiny.output(model), rtol=0, atol=1e-6)


def test_one_shard_at_a_time_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corank.io.shards import ShardWriter

    tiny.llama().save_pretrained(tmp_path / "from")
    held = []
    add = ShardWriter.add

    def watch(self: ShardWriter, name: str, tensor: Tensor) -> None:
        add(self, name, tensor)
        held.append(sum(t.untyped_storage().nbytes() for t in self.pending.values()))

    monkeypatch.setattr(ShardWriter, "add", watch)
    stream(tmp_path / "from", tmp_path / "to", sketch, max_shard_size=9_000)
    assert max(held) <= 9_000
    assert sum(f.stat().st_size for f in (tmp_path / "to").glob("*.safetensors")) > 20_000


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    model = tiny.llama()
    model.save_pretrained(tmp_path / "from")
    tiny.compress(model)
    save(model, tmp_path / "small")
    with pytest.raises(FormatError, match="already"):
        stream(tmp_path / "small", tmp_path / "to", sketch)
    with pytest.raises(FormatError, match=r"config\.json"):
        stream(tmp_path / "nowhere", tmp_path / "to", sketch)
    with pytest.raises(SiteError, match="does not fit"):
        stream(tmp_path / "from", tmp_path / "to", lambda *_: Dense(torch.ones(2, 2)))
    with pytest.raises(SiteError, match="Operator or None"):
        stream(tmp_path / "from", tmp_path / "to", lambda _, matrix, __: matrix)  # type: ignore
    with pytest.raises(ValueError, match="q_porj"):
        stream(tmp_path / "from", tmp_path / "to", sketch, targets=["q_porj"])
    file = tmp_path / "from" / "model.safetensors"
    tensors, content = load_file(file), file.read_bytes()
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    with pytest.raises(FormatError, match=r"lacks 1 tensors.*model\.norm\.weight"):
        stream(tmp_path / "from", tmp_path / "to", sketch)
    file.write_bytes(content[:-9])
    with pytest.raises(FormatError, match="truncated"):
        stream(tmp_path / "from", tmp_path / "to", sketch)
    file.rename(tmp_path / "from" / "pytorch_model.bin")
    with pytest.raises(FormatError, match="safetensors only"):
        stream(tmp_path / "from", tmp_path / "to", sketch)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["from", "small"]


def test_a_tensor_without_a_place_is_reported(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path / "from")
    file = tmp_path / "from" / "model.safetensors"
    save_file(load_file(file) | {"model.extra.weight": torch.ones(2)}, file)
    with pytest.warns(UserWarning, match=r"model\.extra\.weight"):
        stream(tmp_path / "from", tmp_path / "to", sketch)


def test_a_stream_can_replace_its_own_source(tmp_path: Path) -> None:
    model = tiny.gpt2()
    model.save_pretrained(tmp_path / "m")

    def halve(name: str, matrix: Tensor, site: Site) -> Operator:
        return tiny.halve_matrix(name, matrix, site)

    stream(tmp_path / "m", tmp_path / "m", halve)
    tiny.compress(model)
    torch.testing.assert_close(
        tiny.output(load(tmp_path / "m")), tiny.output(model), rtol=0, atol=1e-5
    )
    assert (
        "corank" in json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    )
