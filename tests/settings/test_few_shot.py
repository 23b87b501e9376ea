"""Choosing adapters by a few samples, and mixing them."""

from itertools import combinations

import pytest
import torch

import corank
from corank.adapters import active, adapted
from corank.settings import kshot_experts
from corank.settings.few_shot import least_alike

from ..adapters.small import batches, loss, small_model, stir

X = batches(1)[0]


def bank(count=5):
    model = small_model()
    for number in range(count):
        corank.adapt(model, "lora", rank=2, name=f"e{number}", seed=number)
        stir(model, scale=0.02 * (number + 1), seed=number)
    return model, [f"e{number}" for number in range(count)]


def lora(model, path, name):
    return adapted(model)[path].adapter(name).operators[1]


def test_the_best_and_least_alike_are_taken():
    model, names = bank()
    scores = {}
    for name in names:
        corank.adapters.activate(model, name)
        scores[name] = loss(model, X).item()
    short = sorted(names, key=scores.get)[:4]

    def alike(group):
        total = 0.0
        for one, two in combinations(group, 2):
            for path in adapted(model):
                for leaf in ("b", "a"):
                    p, q = (getattr(lora(model, path, n).operator, leaf).flatten()
                            for n in (one, two))  # fmt: skip
                    total += abs((p @ q / p.norm() / q.norm()).item())
        return total

    expected = min(combinations(short, 2), key=alike)
    corank.adapters.activate(model, "e0")
    chosen = kshot_experts(model, names, [X], loss, experts=2, shortlist=4)
    assert chosen == list(expected)
    assert set(active(model)) == {"experts"}


def test_the_mixture_is_the_sum_of_its_gated_experts():
    model, names = bank(3)
    deltas = {n: {p: lora(model, p, n).dense() for p in adapted(model)} for n in names}
    chosen = kshot_experts(model, names, [X], loss, experts=3, top_k=2)
    weight = adapted(model)["0"]
    router = weight.adapter("experts").operators[1].router.weight
    gates = (X @ router.T).softmax(-1)
    top = gates.topk(2).indices
    gates = torch.zeros_like(gates).scatter(1, top, gates.gather(1, top))
    gates = gates / gates.sum(1, keepdim=True)
    y = X @ weight.base.dense().T + model[0].bias
    for number, name in enumerate(chosen):
        y = y + gates[:, number, None] * (X @ deltas[name]["0"].T)
    torch.testing.assert_close(model[0](X), y)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(6 * (i + o) + 3 * i for o, i in ((36, 16), (20, 36), (20, 20)))


def test_experts_all_alike_are_one_of_them():
    model, names = bank(2)
    for path in adapted(model):
        first, second = (lora(model, path, n).operator for n in names)
        second.load_state_dict(first.state_dict())
    corank.adapters.activate(model, names[0])
    expected = model(X)
    kshot_experts(model, names, [X], loss, experts=2)
    torch.testing.assert_close(model(X), expected)


def test_diversity_beats_the_better_twin():
    one = {"s": (torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]))}
    twin = {"s": (torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0, 0.0]]))}
    other = {"s": (torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 1.0]]))}
    assert least_alike({"one": one, "twin": twin, "other": other}, 2) == ["one", "other"]


def test_bad_candidates_leave_the_model_as_it_was():
    model, names = bank(2)
    corank.adapt(model, "dora", rank=2, name="dora")
    corank.adapt(model, "lora", rank=3, name="wide")
    corank.adapters.activate(model, "e0")
    before = model(X)
    for candidates, message in (
        ([*names, "dora"], "is no LoRA there"),
        ([*names, "wide"], "differ in rank"),
        ([*names, "nobody"], "nobody"),
        (names, "must not"),
    ):
        with pytest.raises(ValueError, match=message):
            kshot_experts(model, candidates, [X], loss, experts=3)
        assert active(model) == {"e0": 1.0}
        torch.testing.assert_close(model(X), before)
