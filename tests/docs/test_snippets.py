"""The Python of a page runs, from its first line to its last."""

import inspect
import re
import runpy
from pathlib import Path

import pytest
import torch

import corank
from corank.operators import Quantised

from ..adapters import test_laws as laws
from ..factorize import test_laws as factorized_laws
from ..verbs.models import tiny_llama, tokens

ROOT = Path(__file__).parents[2]


def snippets(page):
    """The page's Python blocks, each on the line where it stands, so that errors name it."""
    text = page.read_text()
    for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: found.start(1)].count("\n")
        yield compile("\n" * line + found[1], str(page), "exec")


def run_page(name, folder, monkeypatch):
    """Run a page over a tiny model in a folder; what it has named, and its first report."""
    monkeypatch.chdir(folder)
    tiny_llama().save_pretrained("model")
    batches = [{**batch, "labels": batch["input_ids"]} for batch in tokens()]
    rows = [{"input_ids": row, "labels": row} for batch in batches for row in batch["input_ids"]]
    names = {"folder": "model", "batches": batches, "rows": rows}
    for snippet in snippets(ROOT / "docs" / name):
        exec(snippet, names)
        names.setdefault("first_report", names.get("report"))
    return names


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_page_on_adapters_runs(tmp_path, monkeypatch, capsys):
    names = run_page("adapt.md", tmp_path, monkeypatch)
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    assert names["planned"].totals["trainable"] == names["first_report"].totals["trainable"]
    assert "{'code': 0.7, 'prose': -0.3}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_page_on_pretraining_runs(tmp_path, monkeypatch, capsys):
    names = run_page("pretrain.md", tmp_path, monkeypatch)
    whole, resumed = (names[name].model.state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert "sltrain" in capsys.readouterr().out


def test_the_page_on_quantisation_runs(tmp_path, monkeypatch):
    names = run_page("quantize.md", tmp_path, monkeypatch)
    assert any(isinstance(m, Quantised) for m in names["again"].modules())
    assert names["report"].totals["bytes_after"] <= 0.5 * names["report"].totals["bytes_before"]
    assert names["trained"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_page_on_optimisers_runs(tmp_path, monkeypatch, capsys):
    names = run_page("optimize.md", tmp_path, monkeypatch)
    assert "bytes of state" in capsys.readouterr().out
    assert names["trainer"].state.global_step == 4
    assert isinstance(names["trainer"].optimizer.optimizer, corank.optim.GaLore)


@pytest.fixture
def registry():
    known = dict(corank.registry.METHODS)
    yield corank.registry.METHODS
    corank.registry.METHODS.found.clear()
    corank.registry.METHODS.found.update(known)


def of_the_page():
    """Run the page's adapter."""
    for snippet in snippets(ROOT / "docs" / "your-own-method.md"):
        exec(snippet, {})


def of_the_example():
    """Run the example's, not its training."""
    runpy.run_path(str(ROOT / "examples" / "your_own_adapter.py"))


OWN = {"scaled_lora": of_the_page, "fading_lora": of_the_example}


def laws_of(module):
    """The module's tests of one method alone."""
    return {
        name: law for name, law in vars(module).items()
        if name.startswith("test_") and list(inspect.signature(law).parameters) == ["method"]
    }  # fmt: skip


LAWS, FACTORIZED_LAWS = laws_of(laws), laws_of(factorized_laws)


#: Of those, what holds only of adapters whose ranks change.
DYNAMIC = {"test_masked_equals_cut_and_the_optimiser_follows", "test_training_goes_on_after_a_cut"}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("key", OWN)
def test_an_adapter_of_ones_own_obeys_the_laws(key, law, registry):
    OWN[key]()
    if law not in DYNAMIC or "dynamic" in registry[key].laws:
        LAWS[law](registry[key])


@pytest.mark.parametrize("law", FACTORIZED_LAWS)
def test_a_factorisation_of_ones_own_obeys_the_laws(law, registry):
    of_the_page()
    FACTORIZED_LAWS[law](registry["gated_factors"])
