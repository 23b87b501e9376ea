from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import corank
from corank.cli import main


def run_json(capsys, *arguments: object):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def hashes(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_compress_makes_a_folder_that_transformers_loads(capsys, llama, texts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, page = tmp_path / "out", tmp_path / "r.html"
    before = hashes(llama)
    report = run_json(
        capsys, "compress", llama, "--method", "svd_llm", "--keep", 0.5, "--data",
        texts["calibration"], "--sequence-length", 32, "--batch-size", 4, "--out", out,
        "--heldout", f"near={texts['near']}", f"far={texts['far']}", "--report", page,
    )  # fmt: skip
    assert hashes(llama) == before
    assert 0.3 < report["totals"]["keep"] <= 0.5
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    stored = sum(p.numel() for p in model.parameters())
    original = sum(p.numel() for p in corank.load(llama).parameters())
    assert report["totals"]["model_numel_before"] == original
    assert report["totals"]["model_numel_after"] == stored
    assert original - stored == report["totals"]["numel_before"] - report["totals"]["numel_after"]
    assert AutoTokenizer.from_pretrained(out).eos_token == "[EOS]"
    measured = {(r["domain"], r["measure"]) for r in report["sections"]["fidelity"]}
    assert measured >= {("near", "perplexity"), ("far", "perplexity")}
    assert {r["variant"] for r in report["sections"]["speed"]} >= {"dense", "corank"}
    disk = report["sections"]["disk"]
    assert disk["after"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert "<svg" in page.read_text()


def test_a_delta_of_two_folders_is_an_adapter_of_the_first(capsys, llama, tmp_path):
    fine = corank.load(llama)
    with torch.no_grad():
        for layer in fine.model.layers:
            layer.mlp.up_proj.weight.mul_(1.5)
    fine.save_pretrained(tmp_path / "fine")
    report = run_json(
        capsys, "compress", tmp_path / "fine", "--method", "ere", "--original", llama, "--keep",
        0.6, "--out", tmp_path / "delta",
    )  # fmt: skip
    assert report["totals"]["sites"] == 2
    assert {file.suffix for file in (tmp_path / "delta").iterdir()} == {".json", ".safetensors"}
    base = corank.load(llama)
    assert corank.load_adapter(base, tmp_path / "delta").method == "ere"
    steps = ("--steps", "svd", "--original", str(llama), "--out", str(tmp_path / "x"))
    assert main(["compress", str(tmp_path / "fine"), *steps]) != 0
    assert "give --method" in capsys.readouterr().err
    wanted = fine.model.layers[1].mlp.up_proj.weight
    made = base.model.layers[1].mlp.up_proj.operator.dense()
    old = corank.load(llama).model.layers[1].mlp.up_proj.weight
    assert (made - wanted).norm() < 0.5 * (old - wanted).norm()


def test_the_table_names_the_sizes(capsys, bert, tmp_path):
    assert main(["compress", str(bert), "--method", "svd", "--rank", "4", "--targets", "attention",
                 "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    captured = capsys.readouterr()
    assert "targeted sites" in captured.out
    assert "--heldout" in captured.out  # the note that nothing was measured
    assert max(map(len, captured.out.splitlines())) <= 100


def test_quantising_writes_a_folder_of_the_bytes_it_told(capsys, bert, tmp_path):
    told = run_json(capsys, "quantize", bert, "--method", "loftq", "--rank", 4, "--dry-run")
    out = tmp_path / "out"
    report = run_json(capsys, "quantize", bert, "--method", "loftq", "--bits", 4, "--rank", 4,
                      "--out", out)  # fmt: skip
    assert report["totals"]["bytes_after"] == told["totals"]["bytes_after"]
    assert {row["rank"] for row in report["sites"]} == {4}
    assert report["sections"]["disk"]["after"] < report["sections"]["disk"]["before"]


def test_codes_are_written_for_others(capsys, bert, tmp_path):
    out = tmp_path / "out"
    report = run_json(capsys, "quantize", bert, "--method", "round_to_nearest", "--set", "group=32",
                      "--format", "compressed-tensors", "--out", out)  # fmt: skip
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert report["sections"]["disk"]["after"] < report["sections"]["disk"]["before"]


def test_steps_by_flags_or_by_a_recipe_are_the_same(capsys, bert, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "steps: [{svd: {rank: 6, targets: mlp}}, "
        "{round_to_nearest: {bits: 4, group: 16, targets: attention}}]\n"
    )
    by_file = run_json(capsys, "compress", bert, "--recipe", recipe, "--out", tmp_path / "a")
    steps = ["svd:rank=6,targets=mlp", "round_to_nearest:bits=4,group=16,targets=attention"]
    by_flag = run_json(capsys, "compress", bert, "--steps", *steps, "--out", tmp_path / "b")
    assert by_file["totals"] == by_flag["totals"]
    assert [row["step"] for row in by_file["sections"]["steps"]] == [
        "svd(rank=6, targets='mlp')",
        "round_to_nearest(bits=4, group=16, targets='attention')",
    ]
    again = corank.load(tmp_path / "a")
    stored = sum(t.numel() * t.element_size() for t in {*again.parameters(), *again.buffers()})
    assert by_file["totals"]["model_bytes_after"] == stored


def test_auto_says_what_it_tried(capsys, llama, texts, tmp_path):
    page = tmp_path / "r.html"
    report = run_json(
        capsys, "compress", llama, "--auto", "--keep", 0.4, "--data", texts["calibration"],
        "--tuning", texts["near"], "--sequence-length", 32, "--batch-size", 4, "--set",
        'among=["svd", "round_to_nearest"]', "--out", tmp_path / "out", "--report", page,
    )  # fmt: skip
    assert report["method"].startswith("auto: ")
    assert "svd" not in report["method"]
    assert {row["steps"] for row in report["sections"]["tried"]["whole"]} >= {"svd"}
    assert "Tried on one block" in page.read_text()


def test_options_reach_the_method(capsys, bert, tmp_path):
    report = run_json(
        capsys, "compress", bert, "--method", "svd", "--keep", 0.6, "--round-to", 8, "--targets",
        "query", "value", "--allocate", "greedy", "--seed", 3, "--dtype", "float16", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert {row["name"].rpartition(".")[2] for row in report["sites"]} == {"query", "value"}
    assert all(row["rank"] is None or row["rank"] % 8 == 0 for row in report["sites"])
    assert all(row["bytes_before"] == 2 * row["numel_before"] for row in report["sites"])
    assert report["parameters"]["allocate"] == "greedy"
    assert report["parameters"]["seed"] == 3


def test_a_dry_run_reads_shapes_only(capsys, llama, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", None)
    report = run_json(capsys, "compress", llama, "--method", "svd_llm", "--keep", 0.5, "--dry-run")
    assert report["totals"]["keep"] <= 0.5
    assert all(row["bytes_before"] == 2 * row["numel_before"] for row in report["sites"])
    assert list(tmp_path.iterdir()) == []
    totals = report["totals"]
    saved = totals["numel_before"] - totals["numel_after"]
    assert totals["model_numel_before"] - totals["model_numel_after"] == saved > 0


def test_analyze_gives_spectra(capsys, llama, texts, tmp_path):
    page = tmp_path / "r.html"
    report = run_json(capsys, "analyze", llama, "--targets", "q_proj", "--report", page)
    weight = dict(corank.load(llama).named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    values = torch.tensor(report["sections"]["spectra"]["model.layers.0.self_attn.q_proj"])
    expected = torch.linalg.svdvals(weight.float())
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-4)
    assert "Spectra" in page.read_text()
    weighed = run_json(capsys, "analyze", llama, "--targets", "q_proj", "--data", texts["near"])
    assert weighed["sections"]["spectra"] != report["sections"]["spectra"]


def test_merge_is_the_dense_equivalent(capsys, bert, tmp_path):
    from transformers import AutoModel

    small, dense = tmp_path / "small", tmp_path / "dense"
    run_json(capsys, "compress", bert, "--method", "svd", "--keep", 0.5, "--out", small)
    report = run_json(capsys, "merge", small, "--out", dense)
    assert report["sections"]["disk"]["after"] > report["sections"]["disk"]["before"]
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        outputs = [AutoModel.from_pretrained(p).eval()(ids)[0] for p in (small, dense)]
    torch.testing.assert_close(*outputs)


def test_methods_are_listed(capsys):
    listed = run_json(capsys, "methods")
    assert {entry["key"]: entry["area"] for entry in listed}["svd_llm"] == "compress"
    compress = run_json(capsys, "methods", "--area", "compress")
    assert {entry["area"] for entry in compress} == {"compress"}
    assert main(["methods", "--area", "compress"]) == 0
    assert "svd_llm" in capsys.readouterr().out


def test_the_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "corank", "methods", "--json"], capture_output=True, check=True
    )
    assert len(json.loads(done.stdout)) == len(corank.methods())


def test_bench_dispatches(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "compress"]) == 2
    assert "checkout" in capsys.readouterr().err
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "tiny.py").write_text("import sys; print('ran', sys.argv[1:])")
    assert main(["bench", "tiny", "--count", "3"]) == 0
    assert "ran ['--count', '3']" in capsys.readouterr().out
    assert main(["bench", "other"]) == 2
    assert "there are: tiny" in capsys.readouterr().err
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("command", ["compress", "analyze", "merge", "methods", "bench", "demo"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "%" not in text
