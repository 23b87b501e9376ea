"""DirectShare: the authors' choice done literally, bytes, files, bad input."""

import pytest
import torch
from torch.nn import functional as F

import corank
from corank.models import attentions, find_sites, read
from corank.registry import METHODS
from corank.rewrites import Unit
from tests.verbs.models import tiny_bert, tiny_llama, tokens

LAYERS, HEADS, SIZE = 3, 4, 8


def llama(kv=HEADS, layers=LAYERS):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=kv,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def unit_of(model, targets="attention"):
    sites = find_sites(model, targets)
    (group,) = METHODS["directshare"].recipe({}).group(sites)
    return Unit(group, [read(model, site) for site in group])


def family(size=SIZE):
    return METHODS["directshare"].recipe({"head_size": size}).family


def heads(weights, per, o=False):
    """(layer, head) -> its rows, or its columns of o."""
    return {(layer, h): (w[:, h * per : (h + 1) * per] if o else w[h * per : (h + 1) * per])
            for layer, w in enumerate(weights) for h in range(w.shape[o] // per)}  # fmt: skip


@pytest.mark.parametrize("kept", [4, 7, 11, 12])
def test_it_is_the_authors_choice_done_literally(kept):
    model = llama()
    given = unit_of(model)
    old = {r: [m.weight.detach() for m in (getattr(b.self_attn, f"{r}_proj")
               for b in model.model.layers)] for r in "qkvo"}  # fmt: skip
    q, k = heads(old["q"], SIZE), heads(old["k"], SIZE)

    def alike(one, other):
        pair = [torch.cat([q[at], k[at]]).flatten() for at in (one, other)]
        return float(F.cosine_similarity(*pair, dim=0))

    best = {one: max(alike(one, other) for other in q if other[0] < one[0]) for one in q if one[0]}
    gone = sorted(best, key=best.get, reverse=True)[: LAYERS * HEADS - kept]
    takes = {
        one: max((o for o in q if o[0] < one[0] and o not in gone), key=lambda o: alike(one, o))
        for one in gone
    }
    made = dict(zip([site.name for site in given.sites], family().build(given, kept), strict=True))
    for role in "qkvo":
        new = [made[f"model.layers.{i}.self_attn.{role}_proj"].dense() for i in range(LAYERS)]
        was, now = heads(old[role], SIZE, role == "o"), heads(new, SIZE, role == "o")
        for at in q:
            assert torch.equal(now[at], was[takes.get(at, at)])


def test_shared_heads_are_one_leaf_and_counts_are_what_is_stored():
    for kv in (HEADS, 2):
        given = unit_of(llama(kv))
        for kept in (kv, kv + 2, LAYERS * kv):
            ops, counts = family().build(given, kept), family().counts(given, kept)
            leaves = {id(t): t for op in ops for t in op.parameters()}.values()
            per_head = 2 * (4 // kv) * SIZE * 32 + 2 * SIZE * 32  # q and o, k and v
            assert sum(numbers for numbers, _ in counts) == kept * per_head
            assert sum(t.numel() for t in leaves) == kept * per_head
            assert sum(bytes_ for _, bytes_ in counts) == 4 * kept * per_head
            x = torch.randn(3, 32)
            for op, site in zip(ops, given.sites, strict=True):
                assert op.shape == site.shape
                torch.testing.assert_close(op(x), x @ op.dense().mT)


def test_query_heads_go_with_the_head_of_keys_that_they_read():
    model = llama(2)
    given = unit_of(model)
    made = dict(zip([s.name for s in given.sites], family().build(given, 2), strict=True))
    for i in (1, 2):
        k, v = (made[f"model.layers.{i}.self_attn.{r}_proj"].dense() for r in "kv")
        q, o = (made[f"model.layers.{i}.self_attn.{r}_proj"].dense() for r in "qo")
        first = model.model.layers[0].self_attn
        for h in range(2):
            rows, wide = slice(h * 8, h * 8 + 8), slice(h * 16, h * 16 + 16)
            keys = first.k_proj.weight.split(8)
            (source,) = [s for s in range(2) if torch.equal(k[rows], keys[s])]
            there, far = slice(source * 8, source * 8 + 8), slice(source * 16, source * 16 + 16)
            assert torch.equal(v[rows], first.v_proj.weight[there])
            assert torch.equal(q[wide], first.q_proj.weight[far])
            assert torch.equal(o[:, wide], first.o_proj.weight[:, far])


def test_errors_are_those_of_what_is_built():
    given = unit_of(llama())
    menu = family().menu(given)
    assert menu.sizes == [*range(4, 12), None]
    for size, error in zip(menu.sizes[:-1], menu.errors, strict=False):
        made = family().build(given, size)
        lost = sum(float((op.dense().detach() - now.dense()).square().sum())
                   for op, now in zip(given.ops, made, strict=True))  # fmt: skip
        assert error == pytest.approx(lost, rel=1e-4)
    assert menu.errors[0] == max(menu.errors)


def test_a_head_that_stands_twice_is_found_and_costs_nothing(tmp_path):
    model = llama()
    for role in "qkvo":
        first, last = (getattr(model.model.layers[i].self_attn, f"{role}_proj").weight.data
                       for i in (0, 2))  # fmt: skip
        if role == "o":
            last[:, 24:] = first[:, 8:16]
        else:
            last[24:] = first[8:16]
    before = model(**tokens(1)[0]).logits
    targets = ["attention", "mlp"]
    report = corank.compress(model, "directshare", keep=0.97, targets=targets)
    saved = report.totals["bytes_before"] - report.totals["bytes_after"]
    assert saved == 4 * 4 * SIZE * 32  # one head's q, k, v and o
    assert any("9 of 21 targeted weights are none that" in note for note in report.notes)
    torch.testing.assert_close(model(**tokens(1)[0]).logits, before)
    q = [model.model.layers[i].self_attn.q_proj.operator.operators for i in (0, 2)]
    assert q[0][1].weight is q[1][-1].weight
    assert len(q[0]) == 3  # before, the shared one, after
    corank.save(model, tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small")
    assert torch.equal(again(**tokens(1)[0]).logits, model(**tokens(1)[0]).logits)
    q = [again.model.layers[i].self_attn.q_proj.operator.operators for i in (0, 2)]
    assert q[0][1].weight is q[1][-1].weight


def test_attentions_are_found_by_their_names_also_where_o_stands_apart():
    found = attentions(find_sites(tiny_bert()))
    assert [set(roles) for roles in found.values()] == [{"q", "k", "v", "o"}] * 2
    model = tiny_bert()
    report = corank.compress(model, "directshare", keep=0.75, targets="attention")
    assert report.totals["bytes_after"] == 0.75 * report.totals["bytes_before"]
    assert model.encoder.layer[1].attention.self.query.bias is not None


def test_bad_input_is_refused_and_the_model_stays():
    model = tiny_llama()
    with pytest.raises(corank.errors.SiteError, match="Give head_size="):
        corank.compress(model, "directshare", keep=0.7, targets="o_proj")
    with pytest.raises(corank.errors.SiteError, match="heads of 12 do not divide"):
        corank.compress(model, "directshare", keep=0.7, head_size=12)
    with pytest.raises(ValueError, match="head_size=0"):
        corank.compress(model, "directshare", keep=0.7, head_size=0)
    with pytest.raises(ValueError, match="no two layers"):
        corank.compress(model, "directshare", keep=0.7, head_size=8, targets="mlp")
    with pytest.raises(ValueError, match=r"smallest reachable, 12,288"):
        corank.compress(model, "directshare", keep=0.4, head_size=8, targets="attention")
    with pytest.raises(ValueError, match=r"smallest reachable, 49,152"):
        corank.compress(model, "directshare", keep=0.4, head_size=8)
    with pytest.raises(corank.errors.SiteError, match="outside 2, the heads of the first layer"):
        corank.compress(model, "directshare", rank=1, head_size=8)
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
