"""Pretrain a small language model from a bare configuration on the documentation, with GaLore."""

import json
import tempfile
from pathlib import Path

import corank
from corank.cli import main

TEXTS = Path(__file__).parents[1] / "docs"
CONFIG = {
    "model_type": "llama", "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
RECIPE = """
optimizer: galore
set: {optimizer: {rank: 16, every: 10}}
sequence-length: 64
steps: 20
lr: 1e-2
evaluate-every: 10
"""

with tempfile.TemporaryDirectory() as place:
    config, recipe, texts = (Path(place) / n for n in ("config.json", "run.yaml", "texts"))
    config.write_text(json.dumps(CONFIG))
    recipe.write_text(RECIPE)
    texts.mkdir()
    for page in ("adapt.md", "compress.md", "save-and-load.md", "design.md"):
        (texts / page).write_text((TEXTS / page).read_text())
    out = str(Path(place) / "out")
    chosen = ["train", str(config), "--recipe", str(recipe)]
    assert main([*chosen, "--dry-run"]) == 0
    print()
    assert main([*chosen, "--data", str(texts), "--out", out]) == 0
    model = corank.load(Path(out) / "model")
print(type(model).__name__, "with", sum(p.numel() for p in model.parameters()), "parameters")
