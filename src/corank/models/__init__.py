"""Finding the weights of a model, reading them, and putting operators in their place."""

from .attentions import attentions
from .biases import install_together, put_convolved_bias, read_biases
from .blocks import Stack, blocks, stacks
from .coupled import Channels, channels, modules, modules_and_mixers
from .finding import survey
from .heads import Heads
from .kinds import Refused
from .mixers import Mixer
from .norms import find_norms
from .places import (
    densify,
    give_back,
    install,
    is_rewritten,
    module_at,
    read,
    read_bias,
    require_finite,
)
from .refusing import require_finite_leaves, require_one_matrix, require_unquantised
from .site import Site
from .snapshot import snapshot
from .targets import Targets, choose_sites, find_sites, in_layers, require_sites

__all__ = [
    "Channels",
    "Heads",
    "Mixer",
    "Refused",
    "Site",
    "Stack",
    "Targets",
    "attentions",
    "blocks",
    "channels",
    "choose_sites",
    "densify",
    "find_norms",
    "find_sites",
    "give_back",
    "in_layers",
    "install",
    "install_together",
    "is_rewritten",
    "module_at",
    "modules",
    "modules_and_mixers",
    "put_convolved_bias",
    "read",
    "read_bias",
    "read_biases",
    "require_finite",
    "require_finite_leaves",
    "require_one_matrix",
    "require_sites",
    "require_unquantised",
    "snapshot",
    "stacks",
    "survey",
]
