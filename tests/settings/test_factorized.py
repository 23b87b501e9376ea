"""FactorLLM: feed-forward networks as routed experts; with all of them, the original."""

import itertools

import pytest
import torch
from torch.nn import functional as F

import corank
from corank.operators import Dense, RoutedRows
from corank.settings import factorllm
from tests.methods.mixtures import text
from tests.verbs.models import tiny_bert, tiny_llama, tokens


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def routed(top_k=2, scale=1.5):
    torch.manual_seed(0)
    return RoutedRows(*(Dense(rand(3, 5)) for _ in range(4)), router=Dense(rand(4, 5)),
                      top_k=top_k, scale=scale)  # fmt: skip


def by_hand(op, x):
    rows = []
    for token in x:
        best = (op.router.weight @ token).argsort(descending=True)[: op.top_k].tolist()
        rows.append(torch.cat([
            op.scale * part.weight @ token if e in best else torch.zeros(3).double()
            for e, part in enumerate(op.operators)
        ]))  # fmt: skip
    return torch.stack(rows)


def test_values_and_gradients_of_routed_rows_are_those_of_a_loop():
    op, x = routed().requires_grad_(True), rand(6, 5).requires_grad_()
    torch.testing.assert_close(op(x), by_hand(op, x))
    torch.testing.assert_close(op(x.view(2, 3, 5)).view(6, 12), by_hand(op, x))
    leaves = [x, *(part.weight for part in op.operators)]
    weight = rand(6, 12)
    one, two = (torch.autograd.grad((y * weight).sum(), leaves) for y in (op(x), by_hand(op, x)))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), op(x))


def test_routed_rows_are_stored_and_refuse_what_does_not_fit():
    op, x = routed(), rand(3, 5)
    again = corank.operators.build(corank.operators.describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    assert torch.equal(again(x), op(x))
    assert op.flops(2) == 2 * 2 * 4 * 5 + 2 * 2 * 2 * 15 + 2 * 12
    with pytest.raises(ValueError, match="not those of one matrix"):
        op.dense()
    with pytest.raises(ValueError, match="top_k=5 is outside 1 to 4"):
        routed(top_k=5)
    with pytest.raises(ValueError, match="runs of one shape"):
        RoutedRows(Dense(rand(3, 5)), Dense(rand(2, 5)), router=Dense(rand(2, 5)), top_k=1)


def logits(model):
    with torch.no_grad():
        return model(**tokens(1)[0]).logits


def test_all_experts_together_are_the_original():
    model = tiny_llama()
    before = logits(model)
    found = factorllm(model, tokens(2), experts=3, top_k=3, steps=1)
    assert found == {f"model.layers.{i}.mlp": 1.0 for i in range(2)}
    torch.testing.assert_close(logits(model), before)


def test_it_is_the_papers_mixture_with_its_scale_and_the_router_follows_the_prior(tmp_path):
    model = tiny_llama()
    plain, seen = tiny_llama().model.layers[0].mlp, []
    handle = plain_hook(model, seen)
    logits(model)
    handle.remove()
    x = seen[0].flatten(0, 1)
    data = tokens(1)
    found = factorllm(model, data, experts=4, top_k=2)
    mlp = model.model.layers[0].mlp
    assert mlp.gate_proj.operator.router.weight is mlp.up_proj.operator.router.weight
    best = mlp.up_proj.operator.router(x).topk(2).indices
    outputs = []
    for e in range(4):
        run = slice(12 * e, 12 * e + 12)
        inner = F.silu(x @ plain.gate_proj.weight[run].T) * (x @ plain.up_proj.weight[run].T)
        outputs.append(inner @ plain.down_proj.weight[:, run].T)
    outputs = torch.stack(outputs, 1).detach()
    expected = 2 * torch.stack([y[chosen].sum(0) for y, chosen in zip(outputs, best, strict=True)])
    torch.testing.assert_close(mlp(x), expected)
    far = (outputs - outputs.sum(1, keepdim=True) / 2).square().sum(2)
    prior = [min(itertools.combinations(range(4), 2), key=lambda pair: float(row[list(pair)].sum()))
             for row in far]  # fmt: skip
    agreed = sum(len(set(p) & set(b.tolist())) for p, b in zip(prior, best, strict=True))
    assert found["model.layers.0.mlp"] == pytest.approx(agreed / (2 * len(x)))
    assert agreed / (2 * len(x)) > 0.6  # a router that knows nothing agrees in half
    corank.save(model, tmp_path / "routed")
    again = type(model).from_pretrained(tmp_path / "routed")
    assert torch.equal(logits(again), logits(model))


def plain_hook(model, seen):
    up = model.model.layers[0].mlp.up_proj
    return up.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))


def test_it_depends_on_the_data_alone_and_leaves_out_padding():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = tiny_llama()
        factorllm(model, text(1), steps=5, experts=2)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    batch = dict(tokens(1)[0])
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:, 6:] = 0
    found = []
    for ids in (batch["input_ids"], batch["input_ids"] * batch["attention_mask"]):
        model = tiny_llama()
        factorllm(model, [{**batch, "input_ids": ids}], steps=5)
        found.append(model.model.layers[0].mlp.up_proj.operator.router.weight)
    torch.testing.assert_close(*found)


def test_bad_input_is_refused_and_the_model_stays():
    model = tiny_llama()
    with pytest.raises(corank.errors.SiteError, match="5 experts do not divide"):
        factorllm(model, tokens(1), experts=5)
    with pytest.raises(ValueError, match="top_k=3 is outside 1 to experts=2"):
        factorllm(model, tokens(1), experts=2, top_k=3)
    with pytest.raises(ValueError, match="no feed-forward network"):
        factorllm(tiny_bert(), tokens(1))
    with pytest.raises(corank.errors.SiteError, match="has a bias"):
        factorllm(tiny_llama(mlp_bias=True), tokens(1))
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    for steps in ("factorllm", ["factorllm"]):
        with pytest.raises(ValueError, match=r"call corank\.settings\.factorllm"):
            corank.compress(model, steps, keep=0.5)
