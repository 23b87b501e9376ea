"""Compress the reference language model three ways and compare their held-out perplexities."""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import corank
from benchmarks.reference.corpus import calibration_text, heldout_text
from benchmarks.reference.evaluate import encode, load_model, load_tokenizer, perplexity

model, tokenizer = load_model(), load_tokenizer()
ids = encode(tokenizer, calibration_text()[:120_000])[:16_384].view(-1, 8, 256)
data = [{"input_ids": batch} for batch in ids]
heldout = encode(tokenizer, heldout_text()[:40_000])[:8_192]
print(f"dense: perplexity {perplexity(model, heldout, 256):.1f}")
for method, options in (("svd", {}), ("svd_llm", {}), ("corank", {})):
    smaller = copy.deepcopy(model)
    report = corank.compress(smaller, method, keep=0.6, data=data, **options)
    seconds = sum(report.seconds.values())
    print(
        f"{method}: keep {report.totals['keep']:.3f}, "
        f"perplexity {perplexity(smaller, heldout, 256):.1f}, {seconds:.0f} s"
    )
