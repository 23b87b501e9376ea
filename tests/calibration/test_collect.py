from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from corank.calibration import batches, collect
from corank.calibration.statistics import InputStatistics
from corank.errors import DataError, SiteError
from corank.models import find_sites
from tests.calibration.oracles import inputs_of, padded_batches
from tests.models.families import make

NEEDS = {"gram", "mean", "abs_mean", "abs_max", "square_mean"}


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "qwen2"])
def test_statistics_equal_a_loop_over_tokens(family: str) -> None:
    model, data = make(family), padded_batches()
    sites = find_sites(model, "all-linear")
    collect(model, sites, NEEDS, data)
    for site in sites:
        tokens = inputs_of(model, site, data)
        assert site.stats["tokens"] == len(tokens) == 3 * 18
        gram = sum(torch.outer(x, x) for x in tokens) / len(tokens)
        torch.testing.assert_close(site.stats["gram"].double(), gram, rtol=1e-5, atol=1e-6)
        assert torch.equal(site.stats["abs_max"].double(), torch.stack(tokens).abs().amax(0))
        for name, f in (
            ("mean", lambda x: x),
            ("abs_mean", torch.abs),
            ("square_mean", torch.square),
        ):
            oracle = sum(f(x) for x in tokens) / len(tokens)
            torch.testing.assert_close(site.stats[name].double(), oracle, rtol=1e-5, atol=1e-6)


def test_only_what_was_asked_for_is_collected() -> None:
    model = make("llama")
    sites = find_sites(model, "all-linear")
    collect(model, sites, {"abs_mean"}, padded_batches())
    assert {key for site in sites for key in site.stats} == {"abs_mean", "tokens"}


def test_q_k_v_share_one_gram_accumulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make("llama"), padded_batches(2)
    sites = find_sites(model, "all-linear")
    added: list[int] = []
    add = InputStatistics.add
    monkeypatch.setattr(
        InputStatistics, "add", lambda self, rows: (added.append(rows.shape[0]), add(self, rows))
    )
    collect(model, sites, {"gram"}, data)
    stats = {site.name.rpartition("layers.0.")[2]: site.stats for site in sites}
    q, k, v = (stats[f"self_attn.{x}_proj"]["gram"] for x in "qkv")
    assert q is k is v
    assert stats["mlp.gate_proj"]["gram"] is stats["mlp.up_proj"]["gram"]
    assert stats["self_attn.o_proj"]["gram"] is not q
    assert len(added) == 2 * 2 * 4  # batches, layers, and qkv | o | gate up | down
    assert set(added) == {18}


class Fickle(nn.Module):
    """Two layers that read the same tensor on some inputs, and not on others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return y + self.b(x if float(x[0, 0]) > 0 else x.tanh())


def test_sites_that_share_only_sometimes_are_told_apart() -> None:
    torch.manual_seed(0)
    model = Fickle()
    shared, apart = torch.randn(5, 4), torch.randn(5, 4)
    shared[0, 0], apart[0, 0] = 1, -1
    sites = find_sites(model, "all-linear")
    collect(model, sites, {"mean"}, [shared, apart])
    a, b = (site.stats["mean"] for site in sites)
    torch.testing.assert_close(a, torch.cat([shared, apart]).mean(0))
    torch.testing.assert_close(b, torch.cat([shared, apart.tanh()]).mean(0))


class Overwriting(nn.Module):
    """The second layer reads the same memory, after it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        y = self.a(x)
        return y + self.b(x.mul_(3))


def test_memory_written_to_in_between_is_another_input() -> None:
    torch.manual_seed(0)
    model, x = Overwriting(), torch.randn(6, 4)
    sites = find_sites(model, "all-linear")
    collect(model, sites, {"mean"}, [x])
    torch.testing.assert_close(sites[1].stats["mean"], 3 * sites[0].stats["mean"])


def test_convolutions_see_their_patches() -> None:
    model = make("cnn")
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    sites = [s for s in find_sites(model, "all") if s.kind == "conv"]
    assert len(sites) == 4
    seen: dict[str, torch.Tensor] = {}
    for site in sites:
        model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, name=site.name: seen.__setitem__(name, args[0].detach())
        )
    collect(model, sites, {"gram", "mean"}, [x])
    for site in sites:
        module, inner = model.get_submodule(site.name), seen[site.name]
        # The patch at each position, from the definition: a convolution with one-hot kernels.
        taps = torch.eye(site.shape[1]).reshape(site.shape[1], *module.weight.shape[1:])
        if module.padding_mode != "zeros":
            inner = F.pad(inner, (1, 1, 1, 1), mode=module.padding_mode)
        padding = module.padding if module.padding_mode == "zeros" else 0
        convolve = F.conv1d if inner.ndim == 3 else F.conv2d
        rows = convolve(inner, taps, None, module.stride, padding, module.dilation)
        rows = rows.flatten(2).transpose(1, 2).flatten(0, 1).double()
        assert site.stats["tokens"] == len(rows)
        gram = rows.T @ rows / len(rows)
        torch.testing.assert_close(site.stats["gram"].double(), gram, rtol=1e-5, atol=1e-6)


def test_embeddings_count_their_rows() -> None:
    model, data = make("bert"), padded_batches()
    (site,) = find_sites(model, ["word_embeddings"])
    collect(model, [site], {"gram", "square_mean"}, data)
    expected = torch.zeros(64)
    for batch in data:
        for token, keep in zip(
            batch["input_ids"].flatten(), batch["attention_mask"].flatten(), strict=True
        ):
            expected[token] += keep
    assert torch.equal(site.stats["row_counts"], expected)
    assert "gram" not in site.stats
    torch.testing.assert_close(site.stats["square_mean"], expected / expected.sum())


@pytest.mark.parametrize("padded", [True, False])
def test_a_table_that_an_encoder_and_a_decoder_look_up_counts_the_rows_of_both(
    padded: bool,
) -> None:
    model, ids = make("t5"), padded_batches(1)[0]["input_ids"]
    assert model.encoder.embed_tokens is not model.shared
    masks = (ids != 0).long(), torch.tensor([[1] * 4 + [0] * 3] * 3)
    masks = masks if padded else (torch.ones_like(ids),) * 2
    (site,) = find_sites(model, ["shared"])
    batch = {"input_ids": ids, "attention_mask": masks[0]}
    batch |= {"decoder_input_ids": ids, "decoder_attention_mask": masks[1]}
    collect(model, [site], set(), [batch])
    kept = torch.cat([ids[mask.bool()] for mask in masks])
    assert torch.equal(site.stats["row_counts"], torch.bincount(kept, minlength=64).float())


def test_encoder_and_decoder_have_masks_of_their_own() -> None:
    model, data = make("t5"), padded_batches(1)
    inputs = data[0] | {
        "decoder_input_ids": data[0]["input_ids"].flip(0),
        "decoder_attention_mask": torch.tensor([[1] * 4 + [0] * 3] * 3),
    }
    sites = {s.name: s for s in find_sites(model, "all-linear")}
    collect(model, list(sites.values()), {"mean"}, [inputs])
    assert sites["encoder.block.0.layer.0.SelfAttention.q"].stats["tokens"] == 18
    assert sites["decoder.block.0.layer.0.SelfAttention.q"].stats["tokens"] == 12
    assert sites["decoder.block.0.layer.1.EncDecAttention.q"].stats["tokens"] == 12
    assert sites["decoder.block.0.layer.1.EncDecAttention.k"].stats["tokens"] == 18


def test_the_model_is_left_as_it_was() -> None:
    model, data = make("llama").train(), padded_batches(1)
    model.model.layers[0].eval()
    weight = model.lm_head.weight
    weight.grad = torch.ones_like(weight)
    model.model.norm.weight.requires_grad_(False)
    sites = find_sites(model, "all-linear")

    def state() -> tuple:
        modes = [m.training for m in model.modules()]
        flags = [p.requires_grad for p in model.parameters()]
        hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
        grads = [None if p.grad is None else p.grad.sum().item() for p in model.parameters()]
        forwards = ["forward" in m.__dict__ for m in model.modules()]
        return modes, flags, hooks, grads, forwards, model.config.use_cache

    def noisy(model: nn.Module, batch: dict) -> torch.Tensor:
        return model(**batch).logits.sum() * torch.rand(())

    before, rng = state(), torch.random.get_rng_state()
    collect(model, sites, {"gram", "fisher"}, data, loss=noisy)
    assert state() == before
    with pytest.raises(RuntimeError, match="planned"):
        collect(model, sites, {"fisher"}, data, loss=_failing)
    assert state() == before
    assert torch.equal(torch.random.get_rng_state(), rng)


def _failing(model: nn.Module, batch: dict) -> torch.Tensor:
    model(**batch)
    torch.rand(3)
    raise RuntimeError("planned")


def test_activations_that_are_not_finite_name_the_site() -> None:
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    sites = find_sites(model, "all-linear")
    with pytest.raises(SiteError, match=r"layers\.1\.mlp\.down_proj.*not finite in batch 0"):
        collect(model, sites, {"gram"}, padded_batches(1))


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    model = make("llama")
    with pytest.raises(DataError, match=r"token id 70.*64 entries.*tokenizer does not fit"):
        collect(model, find_sites(model), {"mean"}, [{"input_ids": torch.tensor([[5, 70]])}])


def test_data_that_never_reaches_a_site_is_refused() -> None:
    model = make("llama")
    model.spare = nn.Linear(4, 4)
    with pytest.raises(SiteError, match=r"spare.*never reached"):
        collect(model, find_sites(model, ["spare"]), {"mean"}, padded_batches(1))


def test_unknown_needs_and_misfitting_batches_are_refused() -> None:
    model = make("llama")
    with pytest.raises(ValueError, match=r"unknown statistic 'gramm'.*'gram'"):
        collect(model, find_sites(model), {"gramm"}, padded_batches(1))
    plain = make("mlp")
    with pytest.raises(DataError, match="cannot be called with a batch"):
        collect(plain, find_sites(plain), {"mean"}, [{"pixels": torch.zeros(2, 12)}])
    with pytest.raises(DataError, match="meta device"):
        collect(plain.to("meta"), find_sites(plain), {"mean"}, [torch.zeros(2, 12)])


def test_masks_that_cannot_be_matched_are_noted() -> None:
    class Reshaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.a(x.repeat(1, 2, 1))

    model = Reshaping()
    data = [{"x": torch.randn(2, 3, 4), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}]
    notes = collect(model, find_sites(model), {"mean"}, batches(data))
    assert any("do not match the attention mask" in note for note in notes)


def test_sums_stop_where_no_more_is_needed_and_the_pass_with_the_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    sites, data = find_sites(model), [torch.randn(8, 4) for _ in range(5)]
    seen = []

    def watch():
        def look(found):
            seen.append({name: stats["tokens"] for name, stats in found.items()})
            return {"0"} if len(seen) < 3 else {"0", "1"}

        return look

    notes = collect(model, sites, {"gram"}, data, watch=watch)
    assert seen == [{"0": 8, "1": 8}, {"0": 8, "1": 16}, {"0": 8, "1": 24}]
    assert notes == ["calibration ended after 3 of 5 batches: no more were needed"]
    torch.testing.assert_close(sites[0].stats["gram"], data[0].mT @ data[0] / 8)
    assert sites[1].stats["tokens"] == 24
