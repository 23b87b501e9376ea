"""Weights that are refused, each with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from corank.errors import SiteError
from corank.models import Site, find_sites, install, read, require_finite, survey

from .families import full_rank


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 4, 3
        self.register_buffer("qweight", torch.zeros(3, 2, dtype=torch.uint8))


def _integer() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    return layer


def _pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=0.5)


def _dynamic() -> nn.Module:
    float_model = nn.Sequential(nn.Linear(4, 3))
    return torch.ao.quantization.quantize_dynamic(float_model, {nn.Linear})[0]


CASES = {
    "attention": (lambda: nn.MultiheadAttention(4, 2), "fused function"),
    "parametrised": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "remove_parametrizat"),
    "pruned": (_pruned, "not a parameter"),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2), "in 2 groups"),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4), "in 4 groups"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3), "transposed convolution"),
    "three dimensions": (lambda: nn.Conv3d(4, 4, 3), "three-dimensional"),
    "own forward": (lambda: Doubled(4, 3), "Doubled is not a plain nn.Linear"),
    "unknown": (Bilinear, "in a way corank does not know"),
    "packed": (Packed, "floating point"),
    "dynamically quantised": (_dynamic, "not a plain nn.Linear"),
    "integer": (_integer, "torch.int8"),
    "norm of rows": (lambda: nn.Embedding(5, 4, max_norm=1.0), "max_norm"),
    "sparse gradients": (lambda: nn.Embedding(5, 4, sparse=True), "sparse"),
}


@pytest.mark.filterwarnings("ignore:torch")
@pytest.mark.parametrize("case", CASES)
def test_refuses_with_a_reason(case: str) -> None:
    build, reason = CASES[case]
    model = nn.Sequential(nn.Linear(4, 4), build())
    sites, refused = survey(model)
    assert [site.name for site in sites] == ["0"]
    (refusal,) = refused
    assert refusal.name == "1"
    assert reason in refusal.reason
    assert find_sites(model)[0].name == "0"
    with pytest.raises(SiteError, match=r"^1: .*Leave it out"):
        find_sites(model, ["1"])
    with pytest.raises(SiteError, match="Leave it out"):
        read(model, Site("1", "other", None, (3, 4), True, "linear"))


def test_what_stands_beside_a_refused_weight_is_found() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    sites, refused = survey(model)
    assert [site.name for site in sites] == ["linear1", "linear2"]
    assert [refusal.name for refusal in refused] == ["self_attn"]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # where torch takes its fused path and reads the weights itself
        expected = model(x)
        for site in sites:
            install(model, site, full_rank(read(model, site)))
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_a_quantised_tensor_is_refused() -> None:
    class Fancy(Tensor):
        pass

    layer = nn.Linear(4, 3)
    layer._parameters["weight"] = nn.Parameter(layer.weight.detach().as_subclass(Fancy))
    layer._parameters["weight"].data = layer._parameters["weight"].data.as_subclass(Fancy)
    _, refused = survey(nn.Sequential(layer))
    assert ["Fancy" in refusal.reason for refusal in refused] == [True]


def test_a_parametrised_bias_alone_is_refused_too() -> None:
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "bias", nn.Identity())
    assert "parametrised" in survey(nn.Sequential(layer))[1][0].reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_must_be_finite(value: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    (site,) = find_sites(model)
    require_finite(model, site)
    with torch.no_grad():
        model[0].weight[1, 2] = value
    with pytest.raises(SiteError, match=r"0 \(other, 3x4\): its weight has 1 NaN or infinite"):
        require_finite(model, site)


def test_a_site_of_another_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    (site,) = find_sites(model)
    with pytest.raises(SiteError, match="no such module"):
        read(nn.Sequential(), site)
    with pytest.raises(SiteError, match="now holds a Embedding"):
        read(nn.Sequential(nn.Embedding(3, 4)), site)
