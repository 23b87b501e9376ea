"""A method of one's own: whitening by a mix of the inputs' full and diagonal second moments."""

import torch
from torch import nn

import corank
from corank.metrics import Measure, Metric
from corank.registry import Paper, Recipe, method
from corank.rewrites import truncation


@method(Paper("A mix of ASVD and SVD-LLM", "", "this file"), area="compress", laws=("compresses",))
def mixed_svd(share: float = 0.5) -> Recipe:
    """The metric share * C + (1 - share) * diag(C), C the second moment of the inputs."""
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is outside [0, 1]")

    def read(stats):
        gram = stats["gram"]
        return Metric(right=share * gram + (1 - share) * torch.diag(gram.diagonal()))

    return Recipe(truncation(Measure(frozenset({"gram"}), read)))


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
data = [torch.randn(32, 64) @ torch.randn(64, 64) / 8 for _ in range(8)]
for share in (0.0, 0.5, 1.0):
    copied = nn.Sequential(*model)
    report = corank.compress(copied, "mixed_svd", keep=0.5, data=data, share=share)
    with torch.no_grad():
        lost = sum((copied(x) - model(x)).square().mean().item() for x in data) / len(data)
    print(f"share {share}: keep {report.totals['keep']:.3f}, mean squared error {lost:.4f}")
