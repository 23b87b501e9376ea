"""Fine-tune the reference language model, trained on code, on prose: three adapters, one saved."""

import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import corank
from benchmarks.reference.evaluate import encode, load_model, load_tokenizer, perplexity

torch.manual_seed(0)
tokenizer, length, steps = load_tokenizer(), 128, 10
pages = [topics[name] for name in sorted(topics)]
train = encode(tokenizer, "\n".join(pages[::2]))[: steps * 4 * length].view(steps, 4, length)
heldout = encode(tokenizer, "\n".join(pages[1::2]))[: 8 * length]
print(f"frozen: perplexity {perplexity(load_model(), heldout, length):.1f} on unseen pages")
RATES = {"lora": 5e-3, "dora": 5e-3, "pissa": 1e-3}

with tempfile.TemporaryDirectory() as place:
    for method, rate in RATES.items():
        model = load_model()
        report = corank.adapt(model, method, rank=8)
        control = corank.controller(model, total_steps=steps)
        optimizer = torch.optim.AdamW(control.parameter_groups(lr=rate))
        control.attach(optimizer)
        model.train()
        for batch in train:
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
        model.eval()
        corank.save_adapter(model, Path(place) / method)
        print(
            f"{method}: {report.totals['trainable']} of {report.totals['model_numel_before']} "
            f"numbers trained, perplexity {perplexity(model, heldout, length):.1f}"
        )

    loaded = load_model()
    corank.load_adapter(loaded, Path(place) / "pissa")
    with torch.no_grad():
        batch = heldout[None, :length]
        same = torch.equal(loaded(batch).logits, model(batch).logits)
print("loaded back, same outputs:", same)
assert same
