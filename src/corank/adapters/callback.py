"""The controller as a callback of transformers' Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..operators.foreign import knows_its_values

if TYPE_CHECKING:
    from .controller import Controller


def trainer_callback(controller: Controller) -> Any:
    """A TrainerCallback that attaches `controller` to the Trainer's optimiser.

    Until training ends, `state_dict()` of the model, and so a checkpoint, is without weights in
    torchao's formats: they never change, and safetensors cannot hold them.
    """
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        """Plan the steps and attach when training begins."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            controller.plan(state.max_steps)
            controller.attach(kwargs["optimizer"])
            self.saving = controller.model.register_state_dict_post_hook(_leave_out)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saving.remove()

    return Callback()


def _leave_out(
    model: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    for name, value in list(state.items()):
        if isinstance(value, Tensor) and knows_its_values(value):
            del state[name]
