"""What the README says of optimisers beside pytorch-optimizer's holds for both."""

import io
from pathlib import Path

import pytest
import torch
from torch import nn

import corank

theirs = pytest.importorskip("pytorch_optimizer")
README = (Path(__file__).parents[2] / "README.md").read_text()


def galore(kind, model):
    if kind == "corank":
        return corank.optim.GaLore(model, 1e-2, rank=4, every=2, basis="svd", stagger=False)
    options = {"rank": 4, "update_proj_gap": 2, "scale": 0.25, "projection_type": "std"}
    groups = [{"params": [model.weight], **options}]
    return theirs.load_optimizer("galore")(groups, lr=1e-2)


def train(kind, steps=8):
    torch.manual_seed(0)
    model = nn.Linear(12, 8, bias=False)
    optimizer, x = galore(kind, model), torch.randn(20, 12)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - x[:, :8].sin()).square().mean().backward()
        optimizer.step()
    return model.weight.detach(), optimizer


def flipped(svd):
    """The same decomposition with other signs, which are as right."""
    draw = torch.Generator().manual_seed(1)

    def run(*args, **options):
        u, s, vh = svd(*args, **options)
        signs = torch.randint(2, s.shape, generator=draw).to(u) * 2 - 1
        k = len(s)
        u, vh = u.clone(), vh.clone()
        u[:, :k] *= signs
        vh[:k] *= signs[:, None]
        return type(svd(torch.eye(2)))((u, s, vh))

    return run


def test_the_signs_of_singular_vectors(monkeypatch):
    assert "signs of singular vectors do not matter" in README
    usual = {kind: train(kind)[0] for kind in ("corank", "peer")}
    monkeypatch.setattr(torch.linalg, "svd", flipped(torch.linalg.svd))
    other = {kind: train(kind)[0] for kind in ("corank", "peer")}
    torch.testing.assert_close(other["corank"], usual["corank"], atol=1e-5, rtol=1e-4)
    assert (other["peer"] - usual["peer"]).norm() > 0.01 * usual["peer"].norm()


@pytest.mark.parametrize("kind", ["corank", "peer"])
def test_the_state_as_weights_only(kind):
    assert "holds an object, which that refuses" in README
    file = io.BytesIO()
    torch.save(train(kind, 3)[1].state_dict(), file)
    file.seek(0)
    if kind == "corank":
        assert torch.load(file, weights_only=True)["state"]
    else:
        with pytest.raises(Exception, match="Weights only load failed"):
            torch.load(file, weights_only=True)


def test_the_number_of_factorisations():
    (line,) = (x for x in README.splitlines() if x.startswith("| structured weights from scratch"))
    found = corank.methods("train")
    cells = [m for m in found if "cell" in m.laws]
    assert f"| {len(found) - len(cells)} factorisations and {len(cells)} cells" in line
