"""The same numbers in PEFT's layers and in ours give the same function, gradients and merge.

Where the two differ on purpose:

- RandLoRA: equation 4 pairs column k of B_i with row k of A and coefficient (i, k). PEFT flattens
  B by (basis, column) and the coefficients by (column, basis), so column i r + k meets coefficient
  (i r + k) mod bases of row (i r + k) div bases. Both are random; ours follows the paper, and the
  copy below permutes the columns.
- VeRA: PEFT slices one pair drawn for the widest layer; ours is drawn for each size.
"""

import pytest
import torch

import corank

from .small import batches, loss, operators, small_model, stir

peft = pytest.importorskip("peft")
TARGETS = ["0", "2", "4"]


def _identity(t):
    return t


def _added(op):
    return getattr(op.operators[1], "operator", op.operators[1])  # less a scale


def vera(op, layer):
    b, big_b, d, big_a = op.operators[1].operators
    big_a.operator.weight.copy_(layer.vera_A["default"][:, : op.shape[1]].T)
    big_b.weight.copy_(layer.vera_B["default"][: op.shape[0]])
    yield b.diagonal, layer.vera_lambda_b["default"], _identity
    yield d.diagonal, layer.vera_lambda_d["default"], _identity


def randlora(op, layer):
    product = _added(op)
    tall = op.shape[0] >= op.shape[1]
    parts = list(product.operators) if tall else list(product.operators)[::-1]
    b, diagonal, rows = (p if tall or i == 1 else p.operator for i, p in enumerate(parts))
    bases, small = rows.p.shape
    rank, large = rows.q.shape[0], max(op.shape)
    theirs = layer.randlora_B["default"][:large, :bases].flatten(1).view(large, rank, bases)
    b.weight.copy_(theirs.transpose(1, 2).flatten(1))
    rows.q.operator.weight.copy_(layer.randlora_A["default"][:, 0, :small].T)
    yield diagonal.diagonal, layer.randlora_lambda["default"], lambda t: t.T.flatten()
    yield rows.p.weight, layer.randlora_gamma["default"], _identity


def vb_lora(op, layer):
    left, right = op.operators[1].operators
    yield right.bank, layer.vblora_vector_bank["default"], _identity
    yield right.logits, layer.vblora_logits_A["default"], _identity
    yield left.operator.logits, layer.vblora_logits_B["default"], lambda t: t.transpose(0, 1)


def fedpara(op, layer):
    pair = _added(op)
    yield pair.p.b, layer.hada_w1_a["default"], _identity
    yield pair.p.a, layer.hada_w1_b["default"], _identity
    yield pair.q.b, layer.hada_w2_a["default"], _identity
    yield pair.q.a, layer.hada_w2_b["default"], _identity


def lokr(op, layer):
    pair = _added(op)
    if hasattr(pair.p, "weight"):
        yield pair.p.weight, layer.lokr_w1["default"], _identity
    else:
        yield pair.p.b, layer.lokr_w1_a["default"], _identity
        yield pair.p.a, layer.lokr_w1_b["default"], _identity
    if hasattr(pair.q, "weight"):
        yield pair.q.weight, layer.lokr_w2["default"], _identity
    else:
        yield pair.q.b, layer.lokr_w2_a["default"], _identity
        yield pair.q.a, layer.lokr_w2_b["default"], _identity


BANK = {"num_vectors": 6, "vector_length": 4}
CASES = {
    "vera": (vera, {"rank": 12, "stored": True}, "VeraConfig", {"r": 12}),
    "randlora": (
        randlora, {"rank": 6, "alpha": 12.0, "stored": True},
        "RandLoraConfig", {"r": 6, "randlora_alpha": 12},
    ),
    "vb_lora": (vb_lora, {"rank": 3, **BANK}, "VBLoRAConfig", {"r": 3, **BANK}),
    "fedpara": (fedpara, {"rank": 3, "alpha": 6.0}, "LoHaConfig", {"r": 3, "alpha": 6}),
    "fedpara dense": (fedpara, {"rank": 8}, "LoHaConfig", {"r": 8, "alpha": 8}),
    "lokr": (lokr, {"rank": 2, "alpha": 6.0}, "LoKrConfig", {"r": 2, "alpha": 6}),
    "lokr whole": (lokr, {"rank": 8}, "LoKrConfig", {"r": 8, "alpha": 8}),
    "lokr both": (
        lokr, {"rank": 1, "decompose_both": True}, "LoKrConfig",
        {"r": 1, "alpha": 8, "decompose_both": True},
    ),
    "lokr factor": (
        lokr, {"rank": 2, "decompose_factor": 2}, "LoKrConfig",
        {"r": 2, "alpha": 8, "decompose_factor": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_merged_weights_are_pefts(case):
    pairing, ours_given, config, theirs_given = CASES[case]
    ours = small_model()
    corank.adapt(ours, case.split()[0], **ours_given)
    stir(ours)
    torch.manual_seed(3)
    theirs = peft.get_peft_model(
        small_model(), getattr(peft, config)(target_modules=TARGETS, **theirs_given)
    ).double()
    pairs = []
    with torch.no_grad():
        for path, op in operators(ours).items():
            layer = theirs.get_submodule(f"base_model.model.{path}")
            for mine, other, turn in pairing(op, layer):
                assert turn(other).shape == mine.shape or mine.ndim == 1
                other.normal_(generator=torch.Generator().manual_seed(len(pairs)))
                pairs.append((mine, other, turn))
        for mine, other, turn in pairs:
            mine.copy_(turn(other))
    x = batches(1)[0]
    torch.testing.assert_close(ours(x), theirs(x))
    loss(ours, x).backward()
    loss(theirs, x).backward()
    for mine, other, turn in pairs:
        torch.testing.assert_close(mine.grad, turn(other.grad))
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(other) for _, other, _ in pairs}
    corank.adapters.merge_adapters(ours)
    merged = theirs.merge_and_unload()
    for path in TARGETS:
        matrix = corank.adapters.adapted(ours)[path].dense()
        torch.testing.assert_close(matrix, merged.get_submodule(path).weight)
