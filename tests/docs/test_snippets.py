"""The Python of a page runs, from its first line to its last."""

import re
from pathlib import Path

import pytest

from ..verbs.models import tiny_llama, tokens

ROOT = Path(__file__).parents[2]


def snippets(page):
    """The page's Python blocks, each on the line where it stands, so that errors name it."""
    text = page.read_text()
    for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: found.start(1)].count("\n")
        yield compile("\n" * line + found[1], str(page), "exec")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_page_on_adapters_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("model")
    batches = [{**batch, "labels": batch["input_ids"]} for batch in tokens()]
    rows = [{"input_ids": row, "labels": row} for batch in batches for row in batch["input_ids"]]
    names = {"folder": "model", "batches": batches, "rows": rows}
    for snippet in snippets(ROOT / "docs" / "adapt.md"):
        exec(snippet, names)
        names.setdefault("report_of_lora", names["report"])
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    assert names["planned"].totals["trainable"] == names["report_of_lora"].totals["trainable"]
    assert "{'code': 0.7, 'prose': -0.3}" in capsys.readouterr().out
