from __future__ import annotations

import pytest
import torch
from torch import nn

from corank.calibration import collect
from corank.errors import DataError, SiteError
from corank.models import find_sites
from tests.calibration.oracles import padded_batches, singles, token_losses, weight_gradients
from tests.models.families import make

NEEDS = {"fisher", "gradient", "output_gram"}


def close(found: torch.Tensor, oracle: torch.Tensor) -> None:
    scale = float(oracle.abs().max())
    torch.testing.assert_close(found.double(), oracle, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_fisher_is_the_mean_of_squared_sample_gradients(family: str) -> None:
    """Explicit per-token losses, sample by sample: so the labels are shifted exactly once."""
    model, data = make(family), padded_batches(2)
    sites = find_sites(model, "all-linear")
    collect(model, sites, NEEDS, data)
    each = [weight_gradients(model, sites, token_losses(model, s)) for s in singles(data)]
    assert len(each) == 6
    for site, gradients in zip(sites, zip(*each, strict=True), strict=True):
        close(site.stats["fisher"], sum(g.square() for g in gradients) / 6)
        close(site.stats["gradient"], sum(gradients) / 6)


def test_a_second_shift_would_be_noticed() -> None:
    model, data = make("llama"), padded_batches(1)
    sites = find_sites(model, ["down_proj"])
    collect(model, sites, {"gradient"}, data)
    once = sites[0].stats["gradient"]
    twice = find_sites(model, ["down_proj"])
    labels = data[0]["input_ids"].masked_fill(data[0]["attention_mask"] == 0, -100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    collect(model, twice, {"gradient"}, [data[0] | {"labels": shifted}])
    assert not torch.allclose(once, twice[0].stats["gradient"], rtol=0.1)


def test_output_gram_is_the_second_moment_of_output_gradients() -> None:
    model, data = make("llama"), padded_batches(2)
    sites = find_sites(model, "all-linear")
    collect(model, sites, {"output_gram"}, data)
    sums = {site.name: torch.zeros(site.shape[0], site.shape[0]).double() for site in sites}
    tokens = 0
    for sample in singles(data):
        outputs: dict[str, torch.Tensor] = {}
        handles = [
            model.get_submodule(s.name).register_forward_hook(
                lambda _, args, y, name=s.name, to=outputs: to.__setitem__(name, y)
            )
            for s in sites
        ]
        loss = token_losses(model, sample)
        for handle in handles:
            handle.remove()
        for name, g in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
            for row in g[0].double():
                sums[name] += torch.outer(row, row)
        tokens += sample["input_ids"].shape[1]
    for site in sites:
        close(site.stats["output_gram"], sums[site.name] / tokens)


def test_a_tied_weight_gathers_from_both_its_places() -> None:
    model, data = make("qwen2"), padded_batches(2)
    (site,) = find_sites(model, ["embed_tokens"])
    assert site.tied == ("lm_head",)
    collect(model, [site], {"fisher", "gradient"}, data)
    each = [weight_gradients(model, [site], token_losses(model, s))[0] for s in singles(data)]
    close(site.stats["fisher"], sum(g.square() for g in each) / 6)


def test_convolutions_and_a_loss_of_the_callers() -> None:
    model = make("cnn")
    generator = torch.Generator().manual_seed(5)
    data = [(torch.randn(3, 3, 12, 12, generator=generator), torch.randint(5, (3,)))]
    sites = find_sites(model, "all")

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0])[:, :, 0, 0], batch[1])

    # A sum, as in the model, would not change the softmax: the stem needs a gradient.
    model.forward = lambda x: _scores(model, x)  # type: ignore[method-assign]
    collect(model, sites, NEEDS, data, loss=loss)
    each = [
        weight_gradients(model, sites, loss(model, (data[0][0][i : i + 1], data[0][1][i : i + 1])))
        for i in range(3)
    ]
    for site, gradients in zip(sites, zip(*each, strict=True), strict=True):
        close(site.stats["fisher"], sum(g.square() for g in gradients) / 3)
        close(site.stats["gradient"], sum(gradients) / 3)


def _scores(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    stem = model.stem(x.flatten(1, 2)).mean((1, 2))
    scores = model.classifier(model.features(x).mean((2, 3))) * stem[:, None]
    return scores[:, :, None, None]


def test_without_labels_fisher_estimates_the_squared_output_change() -> None:
    """Against sum_k (df_k/dW)^2 by autograd, over many draws of the projection."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=12, max_position_embeddings=16), add_pooling_layer=False,
    ).eval()  # fmt: skip
    data = padded_batches(1)
    sites = find_sites(model, "all-linear")
    collect(model, sites, {"fisher", "output_gram"}, data * 200)
    oracle = torch.zeros(sites[-1].shape).double()
    for sample in singles(data):
        pooled = model(**sample).last_hidden_state[0].mean(0)
        for value in pooled:
            parameter = model.get_submodule(sites[-1].name).weight
            (g,) = torch.autograd.grad(value, [parameter], retain_graph=True)
            oracle += g.double().square() / 3
    found = sites[-1].stats["fisher"].double()
    assert float((found - oracle).norm() / oracle.norm()) < 0.1
    again = find_sites(model, "all-linear")
    collect(model, again, {"fisher"}, data * 200)
    assert torch.equal(again[-1].stats["fisher"], sites[-1].stats["fisher"])
    with pytest.raises(DataError, match="'gradient' needs labels"):
        collect(model, sites, {"gradient"}, data)


def test_masked_language_models_use_the_labels_they_are_given() -> None:
    model, data = make("bert"), padded_batches(1)
    labels = torch.full((3, 7), -100)
    labels[0, 1], labels[0, 3], labels[1, 2] = 7, 8, 9
    sites = find_sites(model, "all-linear")
    collect(model, sites, {"gradient"}, [data[0] | {"labels": labels}])
    total = 0.0
    for b, places in ((0, (1, 3)), (1, (2,))):
        keep = data[0]["attention_mask"][b].bool()
        logits = model(input_ids=data[0]["input_ids"][b][keep][None]).logits[0]
        terms = [-logits[t].log_softmax(-1)[labels[b, t]] for t in places]
        total = total + torch.stack(terms).mean() / 3
    for site, g in zip(sites, weight_gradients(model, sites, total), strict=True):
        close(site.stats["gradient"], g)


def test_relu_in_place_does_not_disturb() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    sites = find_sites(model)
    collect(model, sites, {"gradient"}, [x], loss=lambda m, b: m(b).square().mean())
    loss = model(x).square().mean()
    for site, g in zip(sites, weight_gradients(model, sites, loss), strict=True):
        close(site.stats["gradient"], g)


def test_losses_that_will_not_do_are_refused() -> None:
    model, data = make("llama"), padded_batches(1)
    sites = find_sites(model)
    with pytest.raises(DataError, match="depends on none of the sites"):
        collect(
            model, sites, {"fisher"}, data, loss=lambda m, b: torch.ones((), requires_grad=True)
        )
    with pytest.raises(DataError, match="loss is nan"):
        collect(
            model, sites, {"fisher"}, data, loss=lambda m, b: m(**b).logits.sum() * float("nan")
        )
    with pytest.raises(DataError, match="must be a scalar"):
        collect(model, sites, {"fisher"}, data, loss=lambda m, b: m(**b).logits)


def test_rows_that_cannot_be_divided_into_samples_are_refused() -> None:
    model, data = make("gpt2"), padded_batches(1)
    sites = find_sites(model, ["wpe"])
    with pytest.raises(SiteError, match=r"wpe.*not divided into the batch's 3 samples"):
        collect(model, sites, {"fisher"}, data)
