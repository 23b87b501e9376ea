"""`corank train` as a user calls it: from a configuration or a folder, by flags or a recipe."""

import json

import pytest
import torch

import corank
from corank.cli import main

from .test_commands import run_json

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(6):
        lines = [f"def add_{i}_{j}(a, b):\n    return a + b + {j}\n" for j in range(12)]
        (folder / f"{i}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL | {"model_type": "llama"}))
    return path


def command(config, corpus, out, *more):
    return [
        "train", config, "--data", corpus, "--out", out, "--sequence-length", 16, "--batch-size",
        4, "--steps", 6, "--lr", "1e-2", "--evaluate-every", 2, *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        ["--optimizer", "galore", "--set", "optimizer.rank=8", "optimizer.every=3"],
        ["--factorize", "sltrain", "--rank", 8, "--precision", "bf16"],
        ["--checkpointing", "--schedule", "cosine", "--weight-decay", "0.1"],
    ],
)
def test_a_configuration_becomes_a_model(capsys, config, corpus, tmp_path, more):
    report = run_json(capsys, *command(config, corpus, tmp_path / "out", *more))
    training = report["sections"]["training"]
    assert training["perplexity_after"] < 0.8 * training["perplexity_before"]
    assert any("documents are held out" in note for note in report["notes"])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    ids = torch.tensor([tokenizer("def add")["input_ids"]])
    model = corank.load(tmp_path / "out" / "model").eval()
    assert model(ids).logits.shape[-1] == 300
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_masked_model_and_then_its_folder(capsys, corpus, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL | {"model_type": "bert"}))
    for source, out in ((config, "a"), (tmp_path / "a" / "model", "b")):
        report = run_json(capsys, *command(source, corpus, tmp_path / out))
        training = report["sections"]["training"]
        assert training["after"] < training["before"]
    assert type(corank.load(tmp_path / "b" / "model")).__name__ == "BertForMaskedLM"


def test_a_recipe_says_it_and_flags_win(capsys, config, corpus, tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        f"""
        folder: {config}
        data: {corpus}
        sequence-length: 16
        batch_size: 4
        steps: 50
        lr: 1e-2
        optimizer: galore
        checkpointing: true
        set:
          optimizer: {{rank: 8, every: 3}}
        """
    )
    out = tmp_path / "out"
    flags = ["--steps", 2, "--recipe", recipe, "--out", out, "--set", "optimizer.every=2"]
    report = run_json(capsys, "train", *flags)
    assert report["method"] == "galore"
    assert report["sections"]["training"]["steps"] == 2
    kept = json.loads((out / "checkpoints" / "corank_settings.json").read_text())
    assert kept["set"] == ["optimizer.rank=8", "optimizer.every=2"]
    assert kept["lr"] == 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stps: 3", "unknown option in .*'stps': did you mean 'steps'"),
        ("steps: many", "steps: 'many' is not understood"),
        ("checkpointing: 1", "say true or false"),
        ("precision: fp8", "choose one of bf16, fp16"),
        ("set: [1]", "write names and values"),
        ("lr: [1, 2]", "give one value"),
        ("- steps", "holds no options"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused(capsys, tmp_path, text, message):
    import re

    recipe = tmp_path / "run.yaml"
    recipe.write_text(text)
    assert main(["train", "--recipe", str(recipe)]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--optimizer", "galor"], "unknown optimiser 'galor': did you mean 'galore'"),
        (["--set", "optimizer.rnk=3", "--optimizer", "galore"], "did you mean 'rank'"),
        (["--set", "rank=3"], "write --set optimizer.NAME=VALUE"),
        (["--rank", 3], "--rank is of an adapter or factorisation"),
        (["--factorize", "sltrian"], "did you mean 'sltrain'"),
        (["--sequence-length", 64], "the model has 32 positions"),
        (["--fsdp"], "start it by torchrun"),
        (["--tokenizer", "{corpus}"], "holds no tokenizer"),
        (["--resume"], "no checkpoint to resume from"),
        (["--held-out", "2"], "held_out must be between 0 and 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(capsys, config, corpus, tmp_path, more, message):
    filled = [str(m).format(corpus=corpus) for m in more]
    assert main(list(map(str, command(config, corpus, tmp_path / "out", *filled)))) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_a_head_is_refused(capsys, bert, corpus, tmp_path):
    assert main(list(map(str, command(bert, corpus, tmp_path / "out")))) == 2
    assert "has no head that predicts tokens" in capsys.readouterr().err


def test_tensorboard_that_is_not_there_is_named(capsys, monkeypatch, config, corpus, tmp_path):
    monkeypatch.setattr("corank.training.run.find_spec", lambda name: None)
    assert main(list(map(str, command(config, corpus, tmp_path / "o", "--tensorboard")))) == 2
    assert "pip install tensorboard" in capsys.readouterr().err


def test_a_dry_run_prints_the_bytes_of_a_step(capsys, config):
    base = ["train", config, "--dry-run", "--sequence-length", 32]
    dense = run_json(capsys, *base)
    numbers = dense["gradients"] // 4
    assert 2 * 4 * numbers <= dense["state"] < 2.01 * 4 * numbers
    assert dense["total"] == sum(v for k, v in dense.items() if k != "total")
    low = run_json(capsys, *base, "--optimizer", "galore", "--set", "optimizer.rank=4")
    assert low["state"] < dense["state"]
    assert {k: low[k] for k in ("weights", "activations")} == {
        k: dense[k] for k in ("weights", "activations")
    }
    adapted = run_json(capsys, *base, "--adapt", "lora", "--rank", 4)
    assert adapted["gradients"] < dense["gradients"] / 4
    assert main(list(map(str, base))) == 0
    assert "kept for the backward pass" in capsys.readouterr().out
