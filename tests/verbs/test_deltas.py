"""What fine-tuning changed, stored beside the model before it: function, bytes, files, errors."""

import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn

import corank
from corank.adapters import adapters
from corank.errors import DataError, FormatError, SiteError
from corank.io.adapter_skeleton import SKELETON, TENSORS
from corank.models import find_sites, read
from corank.operators import LowRank
from tests.io import tiny

from .models import tiny_llama, tiny_mlp, tokens, vectors

METHODS = [
    ("ere", {}), ("ere", {"bits": None}),
    ("delta_come", {"data": tokens(), "vectors": (1, 2), "group": 32}),
]  # fmt: skip
every = pytest.mark.parametrize(("key", "options"), METHODS, ids=["ere", "ere in floats", "come"])


@torch.no_grad()
def tuned(base, seed=0, rank=3, also=("norm",)):
    """The model after a made-up fine-tuning: changes of low rank and a little noise."""
    model, g = copy.deepcopy(base), torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=g)

    for site in find_sites(model):
        out, into = site.shape
        change = 0.03 * drawn(out, rank) @ drawn(rank, into) + 0.003 * drawn(out, into)
        model.get_parameter(f"{site.name}.weight").add_(change)
    for name, parameter in model.named_parameters():
        if any(part in name for part in also):
            parameter.add_(0.1 * drawn(*parameter.shape))
    return model


@torch.no_grad()
def logits(model):
    return model(tokens(1)[0]["input_ids"]).logits


def distance(model, other):
    return float((logits(model) - logits(other)).norm())


@every
def test_a_delta_comes_near_the_fine_tuned_model_and_is_loaded_onto_the_base(
    key, options, tmp_path
):
    base = tiny_llama()
    before = copy.deepcopy(base.state_dict())
    fine = tuned(base)
    model = copy.deepcopy(fine)
    report = corank.compress(model, key, original=base, keep=0.35, **options)
    assert distance(model, fine) < 0.3 * distance(base, fine)
    corank.save_adapter(model, tmp_path / "delta")
    loaded = corank.load_adapter(base, tmp_path / "delta")
    assert loaded.method == key
    assert loaded.notes == []
    assert torch.equal(logits(base), logits(model))
    with safe_open(tmp_path / "delta" / TENSORS, "pt") as file:
        stored = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert sum(t.numel() * t.element_size() for t in stored) == report.totals["model_bytes_after"]
    assert report.totals["bytes_after"] <= 0.35 * report.totals["bytes_before"]
    assert any("stored in full" in note and "norm" in note for note in report.notes)
    assert adapters(base)["default"].trains == adapters(model)["default"].trains
    for one in (base, model):  # the weights of the base never changed
        corank.adapters.delete(one, "default")
        assert {n: p for n, p in one.state_dict().items() if not torch.equal(p, before[n])} == {}


def test_without_codes_it_is_the_base_and_the_nearest_change_of_that_rank():
    base = tiny_mlp()
    fine = tuned(base, also=())
    model = copy.deepcopy(fine)
    corank.compress(model, "ere", bits=None, original=base, rank=2)
    for site in find_sites(model):
        old = base.get_parameter(f"{site.name}.weight")
        change = fine.get_parameter(f"{site.name}.weight") - old
        u, s, vh = torch.linalg.svd(change.detach(), full_matrices=False)
        wanted = old + u[:, :2] * s[:2] @ vh[:2]
        torch.testing.assert_close(read(model, site).dense(), wanted)
        torch.testing.assert_close(model.get_parameter(f"{site.name}.bias"),
                                   fine.get_parameter(f"{site.name}.bias"))  # fmt: skip


def test_half_precision_stays_and_so_do_biases_and_convolutions():
    torch.manual_seed(0)
    base = tiny.Cnn().eval().bfloat16()
    fine = tuned(base, also=("bias", "features.1.weight"))
    model, x = copy.deepcopy(fine), torch.randn(2, 3, 8, 8).bfloat16()
    corank.compress(model, "ere", original=base, keep=1.0)
    with torch.no_grad():
        assert model(x).dtype == torch.bfloat16
        torch.testing.assert_close(model(x), fine(x), rtol=0.02, atol=0.02)
    assert torch.equal(model.head.bias, fine.head.bias)


def test_size_is_of_all_that_the_delta_stores():
    base = tiny_llama()
    model = tuned(base)
    report = corank.compress(model, "ere", original=base, size="12KB")
    assert 11_000 < report.totals["model_bytes_after"] <= 12_000
    planned = corank.compress(tuned(base), "ere", size="12KB", dry_run=True)
    assert planned.totals["bytes_after"] <= 12_000


def test_targets_that_did_not_change_cost_nothing():
    base = tiny_llama()
    model = copy.deepcopy(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    report = corank.compress(model, "ere", original=base, keep=0.5)
    assert [row.name for row in report.sites] == ["model.layers.1.mlp.up_proj"]
    assert list(adapters(model)["default"].sites) == ["model.layers.1.mlp.up_proj"]
    assert "13 targeted weights are the original's, and are not stored" in report.notes


def test_ranks_go_to_the_layers_that_changed_most():
    base = tiny_llama()
    model = tuned(base)
    with torch.no_grad():
        moved = 0.2 * torch.randn(32, 32, generator=torch.Generator().manual_seed(2))
        model.model.layers[0].self_attn.q_proj.weight.add_(moved)
    report = corank.compress(model, "ere", bits=None, original=base, keep=0.4)
    ranks = {row.name: row.rank or 32 for row in report.sites}
    assert ranks["model.layers.0.self_attn.q_proj"] > 2 * ranks["model.layers.1.self_attn.q_proj"]


def test_more_bits_for_the_first_vectors_beat_plain_factors_of_as_many_bytes():
    torch.manual_seed(0)
    base, data = nn.Sequential(nn.Linear(192, 192)), [torch.randn(256, 192)]
    fine = copy.deepcopy(base)
    with torch.no_grad():  # singular values with a long tail
        u, _, vh = torch.linalg.svd(torch.randn(192, 192))
        fine[0].weight.add_(u * torch.arange(1, 193.0) ** -0.7 @ vh)
    errors = []
    for key, more in (("delta_come", {"data": data}), ("ere", {"bits": None})):
        model = copy.deepcopy(fine)
        corank.compress(model, key, original=base, keep=1 / 8, **more)
        with torch.no_grad():
            errors.append(float((model(data[0]) - fine(data[0])).norm()))
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's use of transformers
@pytest.mark.parametrize("options", [{"bits": None}, {"bits": 4}], ids=["floats", "codes"])
def test_peft_reads_a_delta_as_a_lora(options, tmp_path):
    from peft import PeftModel

    base = tiny_llama()
    model = tuned(base, also=())
    corank.compress(model, "ere", original=base, rank=4, **options)
    saved = corank.save_adapter(model, tmp_path / "lora", format="peft")
    assert set(saved.ranks.values()) == {4}
    assert saved.error == 0
    there = PeftModel.from_pretrained(base, tmp_path / "lora")
    torch.testing.assert_close(logits(there), logits(model), rtol=1e-4, atol=1e-5)


def test_a_whole_model_with_its_delta_is_saved_too(tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_llama()
    model = tuned(base, also=())
    corank.compress(model, "ere", original=base, keep=0.4)
    corank.save(model, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again), logits(model))
    with corank.adapters.disabled(again):
        assert torch.equal(logits(again), logits(base))


def test_a_tied_embedding_is_one_weight_of_the_delta(tmp_path):
    base = tiny_llama(tie_word_embeddings=True)
    fine = copy.deepcopy(base)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        change = torch.randn(64, 2, generator=g) @ torch.randn(2, 32, generator=g)
        fine.lm_head.weight.add_(0.02 * change)
    whole, low = copy.deepcopy(fine), copy.deepcopy(fine)
    with pytest.raises(ValueError, match=r"no targeted .* though model\.embed_tokens\.weight does"):
        corank.compress(whole, "ere", original=base, keep=0.5)
    corank.compress(low, "ere", original=base, rank=2, targets="all")
    assert distance(low, fine) < 0.05 * distance(base, fine)
    corank.save_adapter(low, tmp_path / "delta")
    corank.load_adapter(base, tmp_path / "delta")
    assert base.lm_head.operator is base.model.embed_tokens.operator
    assert torch.equal(logits(base), logits(low))


def test_the_base_may_be_quantised(tmp_path):
    base = tiny_llama()
    model = tuned(base, also=())
    fine = copy.deepcopy(model)
    corank.quantize(base, "round_to_nearest", bits=4)
    corank.compress(model, "ere", original=base, keep=0.8)
    corank.save_adapter(model, tmp_path / "delta")
    lost = distance(base, fine)
    corank.load_adapter(base, tmp_path / "delta")
    assert torch.equal(logits(base), logits(model))
    assert distance(model, fine) < 0.05 * lost


def test_a_delta_is_no_step_of_a_composition():
    base = tiny_llama()
    with pytest.raises(ValueError, match="use it alone"):
        corank.compress(tuned(base), ["ere", "round_to_nearest"], original=base, keep=0.5)


def test_many_deltas_of_one_base_in_one_folder(tmp_path):
    base, x, wanted = tiny_mlp(), vectors(1)[0], {}
    for seed in range(40):
        model = tuned(base, seed, also=("bias",))
        corank.compress(model, "ere", bits=4, group=32, original=base, rank=2)
        wanted[f"{seed:04d}"] = model(x).detach()
        corank.save_adapter(model, tmp_path / f"{seed:04d}")
    folders = sorted(tmp_path.iterdir())
    assert [folder.name for folder in folders] == list(wanted)
    dense = sum(p.numel() * p.element_size() for p in base.parameters())
    assert all((folder / TENSORS).stat().st_size < dense / 2 for folder in folders)
    serving = tiny_mlp()
    corank.load_adapter(serving, folders[0], "tenant")
    leaves = [id(p) for p in serving.parameters()]
    for folder in folders[1:]:  # the same leaves take other values: nothing is built anew
        corank.load_adapter(serving, folder, "tenant", swap=True)
        with torch.no_grad():
            assert torch.equal(serving(x), wanted[folder.name])
    assert [id(p) for p in serving.parameters()] == leaves
    for folder in folders[:3]:  # or several side by side, a row of a batch through each
        corank.load_adapter(serving, folder, folder.name)
    with torch.no_grad():
        corank.adapters.activate(serving, "0001")
        assert torch.equal(serving(x), wanted["0001"])


def test_a_delta_is_not_loaded_onto_another_base_nor_after_an_edit(tmp_path):
    base = tiny_llama()
    model = tuned(base)
    corank.compress(model, "ere", original=base, keep=0.4)
    corank.save_adapter(model, tmp_path / "delta")
    other = tiny_llama(seed=1)
    kept = copy.deepcopy(other.state_dict())
    with pytest.raises(FormatError, match="defined by its weight"):
        corank.load_adapter(other, tmp_path / "delta")
    with pytest.raises(FormatError):
        corank.load_adapter(tiny_mlp(), tmp_path / "delta")
    assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())
    text = (tmp_path / "delta" / SKELETON).read_text()
    (tmp_path / "delta" / SKELETON).write_text(text.replace('"bits": 8', '"bits": 4'))
    with pytest.raises(FormatError, match="edited"):
        corank.load_adapter(base, tmp_path / "delta")


def _wider(base):
    base.resize_token_embeddings(70)


def _narrow(base):
    base.model.layers[0].mlp.up_proj = nn.Linear(32, 40, bias=False)


def _half(base):
    base.half()


def _with_adapter(base):
    corank.adapt(base, "lora", rank=2)


BAD = [
    (lambda base: None, {}, ValueError, "no targeted weight differs"),
    (_wider, {}, ValueError, "embed_tokens.weight is .* in the original"),
    (_narrow, {}, SiteError, "up_proj .* 40x32"),
    (_half, {}, SiteError, "float16 in the original"),
    (_with_adapter, {}, ValueError, "the original carries adapters"),
    (None, {"original": None}, DataError, "give original="),
    (None, {"cascade": "compressed"}, ValueError, "leave cascade= out"),
    (None, {"allocate": "sensitivity"}, ValueError, "leave allocate= out"),
    (None, {"heal_minutes": 1.0}, ValueError, "leave heal_minutes= out"),
    (None, {"keep": 0.01}, ValueError, "smallest reachable"),
    (None, {"keep": None, "size": "0.5KB"}, ValueError, "less than the 640 bytes"),
    (None, {"bits": 11}, ValueError, "bits must be"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "error", "message"), BAD)
def test_bad_input_is_refused_and_changes_nothing(spoil, options, error, message):
    base = tiny_llama()
    model = tuned(base) if spoil is None else copy.deepcopy(base)
    if spoil is not None:
        spoil(base)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        corank.compress(model, "ere", **{"original": base, "keep": 0.5} | options)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert adapters(model) == {}


def test_buffers_and_single_experts_are_never_lost_silently():
    base = tiny.Cnn()
    fine = tuned(base, also=())
    fine.features[1].running_mean.add_(1)
    with pytest.raises(ValueError, match=r"buffer features\.1\.running_mean differs"):
        corank.compress(fine, "ere", original=base, keep=0.9)
    base = tiny.mixtral()
    fine = copy.deepcopy(base)
    with torch.no_grad():
        fine.model.layers[0].mlp.experts.down_proj.add_(0.1)
    with pytest.raises(SiteError, match="Target all experts"):
        corank.compress(fine, "ere", original=base, keep=0.9, targets=["down_proj.0"])
    whole = copy.deepcopy(fine)
    corank.compress(whole, "ere", bits=None, original=base, keep=0.9, targets="re:experts")
    torch.testing.assert_close(tiny.output(whole), tiny.output(fine), rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, LowRank) for m in whole.modules())
