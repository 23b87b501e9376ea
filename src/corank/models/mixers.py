"""How a state-space mixer of Mamba-2's kind divides what its in_proj makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

#: Attributes that hold the sizes of a `Mixer`, in its order.
_SIZES = ("num_heads", "head_dim", "n_groups", "ssm_state_size")
#: What else the recurrence reads, and what would come between in_proj and it.
_READ = ("A_log", "dt_bias", "act", "chunk_size", "time_step_limit")
_BETWEEN = "mup_vector"


@dataclass(frozen=True)
class Mixer:
    """`heads` of `head_dim` channels each; `groups` of as many heads share B and C of `state`.

    in_proj makes, one after the other, the gate z (heads * head_dim), x (as wide), B and C (groups
    * state each) and the steps dt (heads). x, B and C go through a convolution along time, channel
    by channel; z multiplies what the recurrence gives; a norm and out_proj come last.
    """

    path: str  #: of the module that holds in_proj, conv1d and out_proj
    heads: int
    head_dim: int
    groups: int
    state: int

    @property
    def inner(self) -> int:
        """Channels of x, and of z."""
        return self.heads * self.head_dim

    @property
    def states(self) -> int:
        """Numbers in B, and in C."""
        return self.groups * self.state

    @property
    def convolved(self) -> slice:
        """The rows of in_proj that the convolution reads: those of x, B and C."""
        return slice(self.inner, 2 * (self.inner + self.states))

    @property
    def rows(self) -> int:
        """Outputs of in_proj."""
        return 2 * (self.inner + self.states) + self.heads


def mixer_of(model: nn.Module, path: str) -> Mixer | None:
    """The mixer whose in_proj stands at `path`.

    None for modules of another kind, or where something that is not known scales or normalises the
    channels before they are gated.
    """
    around = path.rpartition(".")[0]
    module: Any = model.get_submodule(around)
    sizes = [size for size in (getattr(module, name, None) for name in _SIZES)
             if isinstance(size, int) and size > 0]  # fmt: skip
    if len(sizes) != len(_SIZES):
        return None
    mixer = Mixer(around, *sizes)
    conv, out = getattr(module, "conv1d", None), getattr(module, "out_proj", None)
    if hasattr(module, _BETWEEN) or not all(hasattr(module, name) for name in _READ):
        return None
    if getattr(getattr(module, "norm", None), "norm_before_gate", False):
        return None
    width = mixer.inner + 2 * mixer.states
    if type(conv) is not nn.Conv1d or (conv.groups, conv.in_channels) != (width, width):
        return None
    made, read = (getattr(part, name, None) for part, name in
                  ((module.in_proj, "out_features"), (out, "in_features")))  # fmt: skip
    fits = (made, read) == (mixer.rows, mixer.inner) and mixer.heads % mixer.groups == 0
    return mixer if fits else None
