"""`corank adapt` and `corank train`, as a user calls them."""

import json

import pytest
import torch

import corank
from corank.cli import main

from .test_commands import hashes, run_json

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_the_list_names_every_method_with_its_cost(capsys):
    assert main(["adapt", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [m.key for m in corank.methods("adapt")]
    assert [line.split()[0] for line in lines[1:]] == keys
    lora = next(line for line in lines if line.startswith("lora "))
    assert "65,536" in lora  # 8 * (4096 + 4096)


def test_a_bare_configuration_of_any_size_is_counted(capsys, tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192,
        "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        report = run_json(
            capsys, "adapt", path, "--method", "lora", "--rank", 16, "--targets", "q_proj",
            "v_proj", "--dry-run",
        )  # fmt: skip
        assert report["totals"]["trainable"] == 80 * 16 * ((8192 + 8192) + (8192 + 1024))
        assert report["totals"]["model_numel_before"] > 68e9


@pytest.mark.parametrize("form", ["corank", "peft"])
def test_a_started_adapter_is_saved(capsys, llama, tmp_path, form):
    before = hashes(llama)
    run_json(
        capsys, "adapt", llama, "--method", "pissa", "--rank", 4, "--out", tmp_path / "a",
        "--format", form,
    )  # fmt: skip
    assert hashes(llama) == before
    model, bare = corank.load(llama), corank.load(llama)
    corank.load_adapter(model, tmp_path / "a")
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model(ids).logits, bare(ids).logits, atol=0.02, rtol=0.02)


def test_training_saves_an_adapter_that_helps_and_resumes(capsys, llama, texts, tmp_path):
    command = [
        "train", llama, "--adapt", "lora", "--rank", 4, "--data", texts["calibration"],
        "--sequence-length", 16, "--batch-size", 4, "--steps", 6, "--lr", "1e-2", "--out",
        tmp_path / "out", "--evaluate-every", 2,
    ]  # fmt: skip
    report = run_json(capsys, *command)
    run = report["sections"]["training"]
    assert run["steps"] == 6
    assert run["perplexity_after"] < run["perplexity_before"]
    model = corank.load(llama)
    corank.load_adapter(model, tmp_path / "out" / "adapter")
    assert corank.adapters.active(model) == {"default": 1.0}
    assert main([*map(str, command), "--resume", "--seed", "1"]) == 2
    assert "other settings: seed was 0 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["html", "md"])
def test_a_report_of_a_training_speaks_of_what_trains(llama, texts, tmp_path, ending):
    command = [
        "train", llama, "--adapt", "lora", "--rank", 4, "--data", texts["calibration"],
        "--sequence-length", 16, "--batch-size", 4, "--steps", 2, "--out", tmp_path / "out",
        "--report", tmp_path / f"report.{ending}",
    ]  # fmt: skip
    assert main([*map(str, command)]) == 0
    page = (tmp_path / f"report.{ending}").read_text()
    for shown in ("trainable", "stored bytes", "perplexity on the tuning rows", "Training"):
        assert shown in page
    for hidden in ("keep", "fraction kept", "Allocation"):
        assert hidden not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapt", "--method", "lora"], "name a FOLDER and a --method"),
        (["adapt", "{llama}", "--method", "lorra", "--dry-run"], "did you mean 'lora'"),
        (["adapt", "{llama}", "--method", "lora", "--set", "ranks=3", "--dry-run"], "'ranks'"),
        (["adapt", "{llama}", "--method", "lora"], "say where the model goes: --out"),
        (["train", "{llama}", "--adapt", "lora", "--out", "{out}"], "what to train on: --data"),
        (["adapt", "{out}", "--method", "lora", "--dry-run"], "does not exist"),
    ],
)
def test_errors_say_what_to_mend(capsys, llama, tmp_path, arguments, message):
    filled = [a.format(llama=llama, out=tmp_path / "out") for a in arguments]
    assert main(filled) == 2
    assert message in capsys.readouterr().err
