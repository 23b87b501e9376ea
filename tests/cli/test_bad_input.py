from __future__ import annotations

import json

import pytest

from corank.cli import main


def fails(capsys, *arguments: object) -> str:
    """The one line on stderr of a command that fails as it should."""
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [part for part in captured.err.splitlines() if part.strip()]
    assert line.startswith("corank: error: ")
    return line


def compress(folder, out, *more: object) -> list[object]:
    return ["compress", folder, "--method", "svd", "--keep", 0.5, "--out", out, *more]


def test_folders_without_a_model(capsys, tmp_path):
    out = tmp_path / "out"
    assert "no folder" in fails(capsys, *compress(tmp_path / "none", out))
    assert "no config.json" in fails(capsys, *compress(tmp_path, out))
    (tmp_path / "config.json").write_text("{")
    assert "not JSON" in fails(capsys, *compress(tmp_path, out))
    (tmp_path / "config.json").write_text("[]")
    assert "no configuration" in fails(capsys, *compress(tmp_path, out))
    assert not out.exists()


def test_a_folder_that_lacks_weights(capsys, bert, tmp_path):
    config = json.loads((bert / "config.json").read_text())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(
        (bert / "model.safetensors").read_bytes()
    )
    config["num_hidden_layers"] += 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    line = fails(capsys, *compress(tmp_path / "model", tmp_path / "out"))
    assert "lacks 16 weights of its BertModel" in line


def test_an_output_that_is_taken(capsys, bert, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "not empty" in fails(capsys, *compress(bert, tmp_path / "model"))
    assert "is a file" in fails(capsys, *compress(bert, tmp_path / "model" / "config.json"))
    assert main([*map(str, compress(bert, tmp_path / "model", "--force"))]) == 0
    capsys.readouterr()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "bert"
    assert "--out" in fails(capsys, "compress", bert, "--method", "svd", "--keep", 0.5)
    assert "--out" in fails(capsys, "merge", bert)


def test_text_without_a_tokenizer_or_file(capsys, bert, llama, texts, tmp_path):
    out = tmp_path / "out"
    assert "no tokenizer" in fails(capsys, *compress(bert, out, "--data", texts["near"]))
    near = f"near={texts['near']}"
    assert "no tokenizer" in fails(capsys, *compress(bert, out, "--heldout", near))
    assert "does not exist" in fails(capsys, *compress(llama, out, "--data", tmp_path / "none"))
    assert "does not exist" in fails(capsys, *compress(llama, out, "--heldout", "a=nowhere"))
    assert "NAME=VALUE" in fails(capsys, *compress(llama, out, "--heldout", "nowhere"))
    both = ("--data", texts["near"], "--heldout", near)
    assert "calibration text itself" in fails(capsys, *compress(llama, out, *both))
    assert "given twice" in fails(capsys, *compress(llama, out, "--heldout", near, near))
    assert not out.exists()


def test_method_and_settings(capsys, bert, tmp_path):
    out = tmp_path / "out"
    start = ["compress", bert, "--out", out]
    assert "svd_llm" in fails(capsys, *start, "--method", "svd_lm", "--keep", 0.5)
    assert "needs calibration data" in fails(capsys, *start, "--method", "svd_llm", "--keep", 0.5)
    assert "outside (0, 1]" in fails(capsys, *start, "--method", "svd", "--keep", 1.5)
    assert "rank 0" in fails(capsys, *start, "--method", "svd", "--rank", 0)
    assert "cannot read the size" in fails(capsys, *start, "--method", "svd", "--size", "big")
    assert "unknown target" in fails(capsys, *compress(bert, out, "--targets", "querry"))
    assert "greedy" in fails(capsys, *compress(bert, out, "--allocate", "gredy"))
    assert "no_such" in fails(capsys, *compress(bert, out, "--set", "no_such=1"))
    assert "seed" in fails(capsys, *compress(bert, out, "--set", "seed=1"))
    assert "NAME=VALUE" in fails(capsys, *compress(bert, out, "--set", "novalue"))
    assert "must end in" in fails(capsys, *compress(bert, out, "--report", "r.pdf"))
    assert "did you mean 'compress'" in fails(capsys, "methods", "--area", "compres")
    assert not out.exists()


def test_quantising(capsys, bert, tmp_path):
    start = ["quantize", bert, "--out", tmp_path / "out", "--method"]
    assert "bits must be 2, 3" in fails(capsys, *start, "round_to_nearest", "--bits", 1)
    twice = ("--bits", 4, "--set", "bits=3")
    assert "give one of them" in fails(capsys, *start, "round_to_nearest", *twice)
    assert "call corank.compress" in fails(capsys, *start, "svd")
    assert not (tmp_path / "out").exists()


def test_steps(capsys, bert, tmp_path):
    start = ["compress", bert, "--out", tmp_path / "out"]
    assert "one of --method KEY, --steps" in fails(capsys, *start, "--keep", 0.5)
    assert "NAME=VALUE" in fails(capsys, *start, "--steps", "svd:rank")
    assert "did you mean" in fails(capsys, *start, "--steps", "svdd")
    assert "give both or neither" in fails(
        capsys, *start, "--method", "svd", "--keep", 0.5, "--tuning", "t.txt"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: {svd: {rank: 3}}")
    assert "write a list such as" in fails(capsys, *start, "--recipe", recipe)
    recipe.write_text("steps: [svd]\nmethod: svd\nkeep: 0.5")
    assert "one of --method KEY, --steps" in fails(capsys, *start, "--recipe", recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["compress", "folder", "--method", "svd", "--steps", "svd"],
        ["compress", "folder", "--method", "svd", "--keep", "0.5", "--rank", "3"],
        ["compress", "folder", "--method", "svd", "--keep", "much"],
        ["compress", "folder", "--method", "svd", "--keep", "0.5", "--dtype", "int8"],
    ],
)
def test_arguments_that_do_not_parse(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: corank" in capsys.readouterr().err


def test_debug_shows_the_traceback(bert, tmp_path):
    with pytest.raises(ValueError, match="outside"):
        main(["compress", str(bert), "--method", "svd", "--keep", "2", "--out",
              str(tmp_path / "out"), "--debug"])  # fmt: skip


def test_an_interrupt_leaves_quietly(capsys, bert, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("corank.verbs.compress", interrupt)
    assert main([*map(str, compress(bert, tmp_path / "out"))]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
