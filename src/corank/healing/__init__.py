"""Training a compressed model back towards the original."""

from .affinity import spatial_affinity_loss
from .heal import Healed, heal

__all__ = ["Healed", "heal", "spatial_affinity_loss"]
