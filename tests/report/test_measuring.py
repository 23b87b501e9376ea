from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from corank.report import Report
from corank.report.comparing import add_measurements
from corank.report.fidelity import measure_fidelity, neighbour_overlap
from corank.report.quantised import dequantised, quantised_variants
from corank.report.speed import count_bytes, count_tokens, measure_speed


def tiny_llama(seed: int = 0) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip


def tiny_bert(seed: int = 0) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    return BertModel(
        BertConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


def padded_batches(count: int = 2, size: int = 12, length: int = 9):
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        ids = torch.randint(1, 50, (size, length), generator=generator)
        lengths = torch.randint(3, length + 1, (size,), generator=generator)
        mask = (torch.arange(length) < lengths[:, None]).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


def by_measure(rows):
    return {row["measure"]: row for row in rows}


def test_perplexity_is_the_mean_over_tokens_one_by_one():
    original, other = tiny_llama(0), tiny_llama(1)
    batches = padded_batches()
    row = by_measure(measure_fidelity(original, other, batches, "d"))["perplexity"]
    for model, key in ((original, "before"), (other, "after")):
        losses = []
        for batch in batches:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                text = ids[: int(mask.sum())]
                with torch.no_grad():
                    chance = model(text[None]).logits[0].log_softmax(-1)
                losses += [-chance[i, text[i + 1]].item() for i in range(len(text) - 1)]
        assert row[key] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_a_model_is_itself():
    model = tiny_bert()
    rows = by_measure(measure_fidelity(model, copy.deepcopy(model), padded_batches(), "d"))
    assert rows["mean cosine"]["after"] == pytest.approx(1, abs=1e-6)
    assert rows["neighbour overlap at 10"]["after"] == 1
    assert rows["relative output error"]["after"] == 0


def test_encoder_measures_ignore_padding():
    first, second = tiny_bert(0), tiny_bert(1)
    batches = padded_batches()
    rows = by_measure(measure_fidelity(first, second, batches, "d"))
    embeddings, difference, size = [], 0.0, 0.0
    for model in (first, second):
        own = []
        for batch in batches:
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            own += [h[m.bool()] for h, m in zip(hidden, batch["attention_mask"], strict=True)]
        embeddings.append(own)
    for a, b in zip(*embeddings, strict=True):
        difference, size = difference + (a - b).square().sum(), size + a.square().sum()
    cosine = torch.stack(
        [torch.cosine_similarity(a.mean(0), b.mean(0), dim=0)
         for a, b in zip(*embeddings, strict=True)]
    ).mean()  # fmt: skip
    assert rows["mean cosine"]["after"] == pytest.approx(cosine.item(), abs=1e-5)
    expected = math.sqrt(difference / size)
    assert rows["relative output error"]["after"] == pytest.approx(expected, rel=1e-5)
    few = measure_fidelity(first, second, padded_batches(1, 5), "d")
    assert set(by_measure(few)) == {"mean cosine", "relative output error"}


def test_neighbour_overlap_against_sets():
    torch.manual_seed(0)
    tables = [nn.functional.normalize(torch.randn(9, 4), dim=-1) for _ in range(2)]
    shared = 0
    for i in range(9):
        nearest = []
        for table in tables:
            others = sorted(
                (j for j in range(9) if j != i), key=lambda j: -float(table[i] @ table[j])
            )
            nearest.append(set(others[:3]))
        shared += len(nearest[0] & nearest[1])
    assert neighbour_overlap(*tables, count=3) == pytest.approx(shared / 27)


def test_any_module_has_an_output_error():
    torch.manual_seed(0)
    model, batch = nn.Linear(3, 4), torch.randn(5, 3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.mul_(0)
        other.bias.mul_(0)
    (row,) = measure_fidelity(model, other, [batch], "d")
    assert row["measure"] == "relative output error"
    assert row["after"] == pytest.approx(1)
    with pytest.raises(ValueError, match="no held-out batches"):
        measure_fidelity(model, other, [], "d")


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.register_buffer("held", torch.zeros(10, dtype=torch.float16))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        import time

        time.sleep(self.seconds)
        return input_ids


def test_speed_is_in_order_and_relative_to_the_first():
    batch = padded_batches(1)[0]
    dense, fast = measure_speed({"dense": Slow(0.04), "fast": Slow(0.01)}, batch, repeats=3)
    assert dense["relative"] == 1
    assert dense["bytes"] == 20
    assert 2.5 < fast["relative"] < 4.5
    tokens = int(batch["attention_mask"].sum())
    assert dense["tokens_per_second"] == pytest.approx(tokens / 0.04, rel=0.2)
    with pytest.raises(ValueError, match="at least one"):
        measure_speed({}, batch)


def test_the_first_round_is_not_timed():
    model = Slow(0.2)
    model.register_forward_hook(lambda module, *_: setattr(module, "seconds", 0.01))
    batch = padded_batches(1)[0]
    (row,) = measure_speed({"dense": model}, batch, repeats=1)
    assert row["tokens_per_second"] > int(batch["attention_mask"].sum()) / 0.1


def test_a_very_slow_model_is_run_once(monkeypatch):
    monkeypatch.setattr("corank.report.speed._LONG", 0.1)
    calls = []
    model = Slow(0.12)
    model.register_forward_hook(lambda *_: calls.append(1))
    (row,) = measure_speed({"slow": model}, padded_batches(1)[0], repeats=3)
    assert len(calls) == 1
    assert row["tokens_per_second"] > 0


def test_tokens_and_bytes_are_counted_once():
    assert count_tokens(torch.ones(2, 7, dtype=torch.long)) == 14
    assert count_tokens(torch.ones(3, 8)) == 3
    model = tiny_llama()
    numel = sum(p.numel() for p in model.parameters())  # the tied head is one of these
    buffers = sum(b.numel() for b in model.buffers())
    assert count_bytes(model) == 4 * (numel + buffers)


def test_quantised_variants_are_smaller_and_close():
    pytest.importorskip("torchao")
    model = tiny_llama()
    variants, notes = quantised_variants(model)
    assert set(variants) == {"int8", "int4"}, notes
    dense = count_bytes(model)
    weights = sum(
        m.weight.numel() for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and n != "lm_head"
    )  # fmt: skip
    assert dense - 3 * weights < count_bytes(variants["int8"]) < dense - 2.7 * weights
    assert count_bytes(variants["int4"]) < count_bytes(variants["int8"])
    errors = {
        name: by_measure(measure_fidelity(model, variant, padded_batches(), "d"))
        for name, variant in variants.items()
    }
    assert 0 < errors["int8"]["relative output error"]["after"] < 0.02
    assert (
        errors["int8"]["relative output error"]["after"]
        < (errors["int4"]["relative output error"]["after"])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dequantised_variant_computes_the_same(dtype):
    pytest.importorskip("torchao")
    model = tiny_bert().to(dtype)
    (batch,) = padded_batches(1)
    for variant in quantised_variants(model)[0].values():
        plain = dequantised(variant)
        weights = [m.weight for m in plain.modules() if isinstance(m, nn.Linear)]
        assert all(type(weight) is nn.Parameter for weight in weights)
        with torch.no_grad():
            outputs = [m(**batch).last_hidden_state.float() for m in (plain, variant, model)]
        error, change = (outputs[0] - outputs[1]).norm(), (outputs[2] - outputs[1]).norm()
        if dtype is torch.float32:
            assert error < 1e-3 * change
        assert error < 0.01 * outputs[1].norm()


def test_a_variant_that_cannot_be_built_is_noted():
    pytest.importorskip("torchao")
    variants, notes = quantised_variants(nn.Sequential(nn.Linear(33, 8)))
    assert set(variants) == {"int8"}
    assert any("int4" in note and "divides" in note for note in notes)
    variants, notes = quantised_variants(nn.Sequential(nn.Conv1d(1, 1, 1)), ["0"])
    assert variants == {}
    assert len(notes) == 3


def test_measurements_fill_the_sections():
    pytest.importorskip("torchao")
    original = tiny_bert()
    report = Report("compress", "svd")
    heldout = {"a": padded_batches(), "b": padded_batches(1)}
    add_measurements(report, original, tiny_bert(1), heldout, repeats=1)
    assert {row["domain"] for row in report.sections["fidelity"]} == {"a", "b"}
    assert [r["variant"] for r in report.sections["speed"]] == ["dense", "corank", "int8", "int4"]
    assert "quantisation wins here: int8" in report.table()
    assert report.sections["speed"][0].get("fidelity") is None
    with pytest.raises(ValueError, match="held-out"):
        add_measurements(report, original, original, {})
