"""An adapter's own file: what comes back, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import corank
from corank.adapters import active, adapted, adapters
from corank.errors import FormatError, SiteError
from corank.io.adapter_skeleton import SKELETON, TENSORS
from corank.io.fingerprint import fingerprint
from corank.io.record import FORMAT, record, seal
from corank.operators import Dense
from tests.adapters.small import adapt, batches, loss, operators, small_model, stir
from tests.io import tiny
from tests.io.test_folder import largest_file, listing

METHODS = [m for m in corank.methods("adapt") if "setting" not in m.laws]
every = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
LORA = next(m for m in METHODS if m.key == "lora")
X = batches(1)[0]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, _ = adapt(LORA, rank=2)
    stir(model)
    corank.save_adapter(model, tmp_path / "a")
    return tmp_path / "a"


@every
def test_every_method_comes_back_bit_for_bit(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = adapt(method)
    stir(model)
    corank.save_adapter(model, tmp_path / "a")
    again = small_model()
    torch.manual_seed(3)
    drawn = torch.get_rng_state()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a decomposition")

    with monkeypatch.context() as patch:
        for name in ("svd", "svdvals", "eigh", "qr"):
            patch.setattr(torch.linalg, name, refuse)
        loaded = corank.load_adapter(again, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert loaded.method == method.key
    assert not loaded.notes
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(again(X), model(X))
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: p.requires_grad for n, p in again.named_parameters()} == flags  # shared ones once
    mine, theirs = adapters(again)["default"], adapters(model)["default"]
    assert list(mine.sites) == list(theirs.sites)
    assert (mine.trains, mine.also) == (theirs.trains, theirs.also)
    if method.key != "eigenlorax":  # its parameters are operators, which no file names
        count = theirs.recipe.count(list(theirs.sites.values()))
        assert mine.recipe.count(list(mine.sites.values())) == count


def test_training_goes_on_and_other_adapters_stay(saved: Path) -> None:
    model, _ = adapt(LORA, name="first")
    stir(model)
    with torch.no_grad():
        before = model(X)
        corank.load_adapter(model, saved, "second")
        assert active(model) == {"second": 1.0}
        assert not torch.equal(model(X), before)
    optimizer = torch.optim.Adam(corank.controller(model).parameter_groups(1e-2))
    loss(model, X).backward()
    optimizer.step()
    corank.adapters.activate(model, "first")
    assert torch.equal(model(X), before)
    with pytest.raises(ValueError, match="already carries"):
        corank.load_adapter(model, saved, "first")


def test_own_parameters_come_back_and_go(tmp_path: Path) -> None:
    model = small_model()
    start = copy.deepcopy(model.state_dict())
    corank.adapt(model, "lora", targets=["0", "2"], rank=2, modules_to_save=["4"])
    stir(model)
    corank.adapters.activate(model, [])  # its values are set aside, and saved all the same
    corank.save_adapter(model, tmp_path / "a")
    corank.adapters.activate(model, "default")
    again = small_model()
    corank.load_adapter(again, tmp_path / "a")
    assert torch.equal(again(X), model(X))
    assert again[4].weight.requires_grad
    corank.adapters.delete(again, "default")
    assert all(torch.equal(value, start[name]) for name, value in again.state_dict().items())


def test_transformers_with_ties_and_experts(tmp_path: Path) -> None:
    for make, folder in ((tiny.llama, "l"), (tiny.gpt2, "g"), (tiny.mixtral, "m")):
        model = make()
        corank.adapt(model, "dora", targets="all", rank=2)
        stir(model)
        corank.save_adapter(model, tmp_path / folder)
        again = make()
        corank.load_adapter(again, tmp_path / folder)
        assert torch.equal(tiny.output(again), tiny.output(model))


def other_base() -> nn.Module:
    model = small_model()
    with torch.no_grad():
        model[2].weight[0, 0] += 0.5
    return model


def test_what_follows_its_weight_is_refused_on_another(tmp_path: Path) -> None:
    for key in ("dora", "pissa"):
        model, _ = adapt(next(m for m in METHODS if m.key == key), rank=2)
        corank.save_adapter(model, tmp_path / "a")
        other = other_base()
        prints = [fingerprint(Dense(m[2].weight)) for m in (small_model(), other)]
        with pytest.raises(FormatError, match=rf"^2 .*{prints[0]}.*{prints[1]}.*force=True"):
            corank.load_adapter(other, tmp_path / "a")
        assert type(other[2]) is nn.Linear
        assert corank.load_adapter(other, tmp_path / "a", force=True).notes


def test_what_only_adds_is_loaded_with_a_note(saved: Path) -> None:
    loaded = corank.load_adapter(other_base(), saved)
    assert len(loaded.notes) == 1
    assert loaded.notes[0].startswith("2: made for weight")


def test_fingerprints() -> None:
    weight = torch.randn(5, 7).bfloat16()
    here = fingerprint(Dense(weight))
    assert fingerprint(Dense(weight.float())) == here
    assert fingerprint(Dense(weight.flip(0))) != here
    assert fingerprint(Dense(weight.flip(1))) != here
    moved = weight.clone()
    moved[3, 3] = moved[3, 3].nextafter(torch.tensor(9.0).bfloat16())
    assert fingerprint(Dense(moved)) != here
    zeros = [fingerprint(Dense(torch.zeros(n, 12 // n))) for n in (2, 3)]
    assert zeros[0] != zeros[1]
    large = torch.zeros(1100, 1024)
    here = fingerprint(Dense(large))
    for row, column in ((0, 0), (7, slice(None)), (slice(None), 9)):
        moved = large.clone()
        moved[row, column] = 1
        assert fingerprint(Dense(moved)) != here


def unchanged(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    plain = all(type(m) in (nn.Sequential, nn.Linear, nn.Tanh) for m in model.modules())
    same = all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    return (
        plain and same and not adapters(model) and all(p.requires_grad for p in model.parameters())
    )


def test_damage_is_refused(saved: Path) -> None:
    model, file, skeleton = small_model(), saved / TENSORS, saved / SKELETON
    state = copy.deepcopy(model.state_dict())
    whole, text = file.read_bytes(), skeleton.read_text()
    for content, match in ((whole[:-8], "truncated"), (whole[:-1] + b"\7", "edited or damaged")):
        file.write_bytes(content)
        with pytest.raises(FormatError, match=match):
            corank.load_adapter(model, saved)
    file.write_bytes(whole)
    newer = json.dumps(seal(json.loads(text) | {"format": FORMAT + 1}))
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    for content, match in (
        (text[:-9], "truncated"),
        (text.replace('"lora"', '"dora"'), "edited"),
        (newer, "upgrade"),
        (deep, "truncated, or is no JSON"),
        ("[1]", "JSON object"),
    ):
        skeleton.write_text(content)
        with pytest.raises(FormatError, match=match):
            corank.load_adapter(model, saved)
    skeleton.unlink()
    with pytest.raises(FormatError, match="no saved adapter"):
        corank.load_adapter(model, saved)
    assert unchanged(model, state)


def nested(depth: int) -> dict[str, Any]:
    op: dict[str, Any] = {"kind": "Base", "shape": [36, 16]}
    for _ in range(depth):
        op = {"kind": "Sum", "operators": [op]}
    return op


def operator(skeleton: dict[str, Any], op: Any) -> None:
    skeleton["sites"]["0"]["operator"] = op


HUGE = {"dtype": "float64", "shape": [2**40, 2**20]}
FAR = {"shape": [36, 2], "dtype": "float64"}
HOSTILE = {
    "path": lambda s: s["files"].update({"../../etc/passwd": {"bytes": 1, "sha256": ""}}),
    "other file": lambda s: s.update(files={"/etc/passwd": s["files"][TENSORS]}),
    "site path": lambda s: s["sites"].update({"../0": s["sites"].pop("0")}),
    "site of the record": lambda s: s["adapter"]["overrides"].update({"../0": {}}),
    "huge": lambda s: operator(s, {"kind": "Dense", "weight": HUGE}),
    "negative": lambda s: operator(s, {"kind": "Dense", "weight": {**FAR, "shape": [-1, 2]}}),
    "not in the file": lambda s: operator(s, {"kind": "Dense", "weight": FAR}),
    "wrong shape": lambda s: s["sites"]["0"]["operator"]["operators"][1]["operator"]["b"].update(
        shape=[2, 36]
    ),
    "other rank": lambda s: [
        s["sites"]["0"]["operator"]["operators"][1]["operator"][leaf].update(shape=shape)
        for leaf, shape in (("b", [36, 5]), ("a", [5, 16]))
    ],
    "unknown operator": lambda s: operator(s, {"kind": "Pickle", "path": "x"}),
    "operator of nothing": lambda s: operator(s, {"kind": "Sum", "operators": []}),
    "no operator": lambda s: operator(s, {"shape": [36, 16], "dtype": "float64"}),
    "other arguments": lambda s: operator(s, {"kind": "Base", "shape": [36, 16], "x": 1}),
    "huge base": lambda s: operator(s, {"kind": "Base", "shape": [2**60, 2**60]}),
    "text for a shape": lambda s: operator(s, {"kind": "Base", "shape": "ab"}),
    "deep": lambda s: operator(s, nested(300)),
    "wide": lambda s: operator(s, {"kind": "Product", "operators": [nested(0)] * 5000}),
    "no site": lambda s: s.update(sites={}),
    "odd site": lambda s: s["sites"].update({"0": 7}),
    "odd record": lambda s: s["adapter"].update(seed="x"),
    "odd trains": lambda s: s["adapter"]["trains"].update({"0": 3}),
    "shared with nothing": lambda s: s["shared"].update({"sites/0/operators.1.operator.b": "no"}),
    "shared oddly": lambda s: s["shared"].update({"sites/0/operators.1.operator.b": ["no"]}),
    "own parameter": lambda s: s["adapter"].update(also=["4.weight"]),
    "kind": lambda s: s["sites"]["0"].update(kind="embedding"),
    "shape": lambda s: s["sites"]["0"].update(shape=[16, 36]),
    "extra entry": lambda s: s.update(run="rm"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_skeletons_are_refused(name: str, saved: Path) -> None:
    model = small_model()
    state = copy.deepcopy(model.state_dict())
    skeleton = json.loads((saved / SKELETON).read_text())
    HOSTILE[name](skeleton)
    (saved / SKELETON).write_text(json.dumps(seal(skeleton)))
    with pytest.raises((FormatError, SiteError)):
        corank.load_adapter(model, saved)
    assert unchanged(model, state)


def test_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(SiteError, match="36, 16"):
        corank.load_adapter(nn.Sequential(nn.Linear(8, 8), *small_model()[1:]), saved)
    with pytest.raises(FormatError, match="no weight 4"):
        corank.load_adapter(small_model()[:4], saved)
    with pytest.raises(SiteError, match="meta"):
        corank.load_adapter(small_model().to("meta"), saved)


def test_an_own_parameter_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = small_model()
    corank.adapt(model, "lora", targets=["0"], modules_to_save=["4"])
    corank.save_adapter(model, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / TENSORS)
    tensors["also/4.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "a" / TENSORS)
    skeleton = json.loads((tmp_path / "a" / SKELETON).read_text())
    skeleton["files"] = record([tmp_path / "a" / TENSORS])
    (tmp_path / "a" / SKELETON).write_text(json.dumps(seal(skeleton)))
    again = small_model()
    with pytest.raises(FormatError, match=r"4\.bias is \(3,\)"):
        corank.load_adapter(again, tmp_path / "a")
    assert unchanged(again, small_model().state_dict())


def test_a_full_disk_leaves_the_old_folder(saved: Path) -> None:
    before = listing(saved)
    model, _ = adapt(LORA, rank=8)
    for form in ("corank", "peft"):
        with largest_file(500), pytest.raises(OSError, match="could not save"):
            corank.save_adapter(model, saved, format=form)
        assert listing(saved) == before
    assert [p.name for p in saved.parent.iterdir()] == ["a"]


def test_a_folder_of_a_model_is_not_replaced(saved: Path, tmp_path: Path) -> None:
    model, _ = adapt(LORA)
    corank.save(tiny.Cnn(), tmp_path / "m")
    before = listing(tmp_path / "m")
    with pytest.raises(FormatError, match="no saved adapter"):
        corank.save_adapter(model, tmp_path / "m")
    with pytest.raises(FormatError, match="no saved model"):
        corank.save(tiny.Cnn(), saved)
    assert listing(tmp_path / "m") == before
    (saved / "README.md").write_text("mine")
    corank.save_adapter(model, saved, format="peft")
    assert set(listing(saved)) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_bad_arguments(tmp_path: Path) -> None:
    model, _ = adapt(LORA)
    with pytest.raises(ValueError, match="did you mean 'default'"):
        corank.save_adapter(model, tmp_path / "a", "defalt")
    with pytest.raises(ValueError, match="format"):
        corank.save_adapter(model, tmp_path / "a", format="pickle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank"):
        corank.save_adapter(model, tmp_path / "a", rank=3)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("merged", [False, True])
@every
def test_a_saved_model_remembers_its_adapters(method: Any, merged: bool, tmp_path: Path) -> None:
    if merged and "plain_module" in method.laws:
        pytest.skip("what depends on the input cannot be merged")
    model, _ = adapt(method)
    stir(model)
    expected = model(X)
    if merged:
        corank.adapters.merge_adapters(model)
    corank.save(model, tmp_path / "m")
    again = corank.load(tmp_path / "m", small_model)
    assert torch.equal(again(X), expected)
    assert list(adapters(again)) == ["default"]
    assert adapters(again)["default"].method == method.key
    corank.adapters.unmerge_adapters(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: p.requires_grad for n, p in again.named_parameters()} == flags
    corank.controller(again)
    if "also" not in method.laws:
        corank.adapters.delete(again, "default")
        torch.testing.assert_close(again(X), small_model()(X))


def test_a_transformers_folder_remembers_its_adapters(tmp_path: Path) -> None:
    model = tiny.mixtral()
    corank.adapt(model, "lora", rank=2, name="one")
    stir(model)
    corank.adapt(model, "dora", targets=["q_proj"], rank=2, name="two")
    corank.adapters.activate(model, {"one": 0.5, "two": 1.0})
    model.save_pretrained(tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m").eval()
    assert torch.equal(tiny.output(again), tiny.output(model))
    assert list(adapters(again)) == ["one", "two"]
    assert active(again) == {"one": 0.5, "two": 1.0}
    assert all(list(adapted(again)[s].names) for s in adapters(again)["one"].sites)
    corank.adapters.activate(model, "one")
    corank.adapters.activate(again, "one")
    assert torch.equal(tiny.output(again), tiny.output(model))


def test_shared_leaves_are_stored_once(tmp_path: Path) -> None:
    model, _ = adapt(LORA, rank=2)
    first, second = operators(model)["2"], operators(model)["4"]
    shared = nn.Parameter(torch.randn(20, 2, dtype=torch.float64))
    for op in (first, second):
        op.operators[1].operator.b = shared  # type: ignore[union-attr, operator, index]
    stir(model)
    corank.save_adapter(model, tmp_path / "a")
    names = load_file(tmp_path / "a" / TENSORS)
    assert sum(tensor.shape == (20, 2) for tensor in names.values()) == 1
    again = small_model()
    corank.load_adapter(again, tmp_path / "a")
    one, two = (operators(again)[n].operators[1].operator.b for n in ("2", "4"))  # type: ignore[union-attr, index]
    assert one is two
    assert torch.equal(again(X), model(X))


@pytest.mark.parametrize("key", ["vera", "nola", "randlora", "tera"])
def test_frozen_random_matrices_are_seeds_in_the_file_or_stored(key: str, tmp_path: Path) -> None:
    method = next(m for m in METHODS if m.key == key)
    model, _ = adapt(method)
    stir(model)
    seeds = corank.save_adapter(model, tmp_path / "seeds").bytes
    stored = corank.save_adapter(model, tmp_path / "stored", store_random=True).bytes
    assert seeds < stored
    for folder in ("seeds", "stored"):
        again = small_model()
        corank.load_adapter(again, tmp_path / folder)
        assert torch.equal(again(X), model(X))


def test_a_seed_that_draws_other_numbers_is_refused(tmp_path: Path) -> None:
    model, _ = adapt(next(m for m in METHODS if m.key == "vera"))
    corank.save_adapter(model, tmp_path / "a")
    for change, message in (("checksum", "other random numbers"), ("shape", "rebuilt|larger")):
        file = tmp_path / "a" / "corank_adapter.json"
        skeleton = json.loads(file.read_text())
        for site in skeleton["sites"].values():
            for part in _parts(site["operator"]):
                if part.get("kind") == "Seeded":
                    changed = {"checksum": "0" * 16, "shape": [1 << 20, 1 << 20]}[change]
                    part[change] = changed
        file.write_text(json.dumps(seal(skeleton)))
        again = small_model()
        with pytest.raises(FormatError, match=message):
            corank.load_adapter(again, tmp_path / "a")
        assert not adapters(again)


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part)
