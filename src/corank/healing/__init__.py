"""Training a compressed model back towards the original."""

from .heal import Healed, heal

__all__ = ["Healed", "heal"]
