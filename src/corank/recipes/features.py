"""Weights cut to the subspaces that their inputs and outputs use."""

from __future__ import annotations

from ..metrics import covariance, second_moment
from ..registry import Paper, Recipe, method
from ..rewrites import truncation, utilised
from .low_rank import OPTIMAL


@method(
    Paper(
        "Rethinking Compression: Reduced Order Modelling of Latent Features (LLM-ROM)",
        "2312.07046",
        "section 2: eigenvectors of the outputs' covariance, layer by layer",
        "the paper says covariance and reconstructs without a mean; centred=True keeps the mean "
        "in the bias, centred=False is the literal reconstruction; which blocks and how much is "
        "left to targets and allocate",
    ),
    area="compress",
    laws=OPTIMAL,
)
def rom(centred: bool = True) -> Recipe:
    """Principal output features, each layer fed by the layers reduced before it."""
    measure = covariance() if centred else second_moment()
    return Recipe(truncation(measure), cascade="compressed")


@method(
    Paper(
        "Unified Low-rank Compression Framework for Click-through Rate Prediction",
        "2405.18146",
        "atomic feature mimicking: centred covariance of the outputs, and of looked-up rows",
        "no ReLU between the factors of a multilayer perceptron, so the map stays linear",
    ),
    area="compress",
    laws=OPTIMAL,
)
def afm() -> Recipe:
    """Principal components of the centred outputs, of linear layers and embedding tables alike."""
    return Recipe(truncation(covariance()))


@method(
    Paper(
        "LoRD: Low Rank Decomposition of Monolingual Code LLMs for One-Shot Compression",
        "2309.14021",
        "atomic feature mimicking of every linear layer, one rank per kind of layer",
        "only the abstract could be read: that the outputs' covariance is centred, as in atomic "
        "feature mimicking, is not confirmed",
    ),
    area="compress",
    laws=OPTIMAL,
)
def lord(ridge: float = 0.0) -> Recipe:
    """One shot from the outputs' covariance, the mean kept in the bias."""
    return Recipe(truncation(covariance(ridge)))


@method(
    Paper(
        "Revealing the Utilized Rank of Subspaces of Learning in Neural Networks",
        "2407.04797",
        "W' = P_S W P_T, utilised rank min(k_S, k_T)",
        "the paper's centring and thresholds were not found: second moments, and the largest "
        "common share of energy that a rank allows",
    ),
    area="compress",
    laws=("compresses",),
)
def utilized_rank() -> Recipe:
    """Project on the input and output subspaces that the data uses, then factorise."""
    return Recipe(utilised(), allocate="energy")
